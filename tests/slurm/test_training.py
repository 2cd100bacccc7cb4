"""Real training on a real Slurm cluster: the losses of a local run; a preemption leaves the adapter as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.rundir.directory import RunDir
from tests.slurm.conftest import Zl, events, reasons, wait

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.timeout(400)]


def finished(output: str) -> RunDir:
    result = json.loads(output.splitlines()[-1])
    assert result["state"] == "SUCCEEDED"
    return RunDir(Path(result["directory"]))


def losses(run: RunDir) -> dict[int, float]:
    return {metric["step"]: metric["loss"] for metric in run.read_metrics() if "loss" in metric}


def test_the_smoke_run_passes_on_four_nodes_with_the_losses_of_four_local_ranks(zl: Zl) -> None:
    words = ("--smoke", "--device", "cpu", "--set", "train.zero_stage=2", "--json")
    cluster = finished(zl("slurm", "--nodes", "4", *words, timeout=300))
    local = finished(zl("local", "--procs", "4", *words, timeout=300))
    assert len(losses(cluster)) == 12
    assert losses(cluster) == pytest.approx(losses(local), rel=1e-5)
    assert cluster.ds_config.read_text() == local.ds_config.read_text()


def test_a_preempted_training_gives_the_adapter_of_an_uninterrupted_one(zl: Zl) -> None:
    words = ["--smoke", "--device", "cpu", "--json"]
    for setting in ("engine=peft", "zero_stage=2", "max_steps=40", "checkpoint_every=0"):
        words += ["--set", f"train.{setting}"]
    output = zl("slurm", "--nodes", "2", "--detach", *words)
    run = RunDir(Path(json.loads(output.splitlines()[-1])["directory"]))
    wait(lambda: len(losses(run)) >= 3, 300)
    zl.cluster.run(["scancel", "--signal=USR2", "--batch", run.record.ids[0]])  # what Slurm itself sends
    wait(lambda: events(run, "slurm_requeue"), 60)
    assert reasons(run, "slurm_requeue") == ["stopped with a checkpoint on SIGUSR2"]
    stopped = max(losses(run))
    assert stopped < 40
    zl.hurry(run)
    whole = finished(zl("local", "--procs", "2", *words, timeout=200))
    wait(lambda: events(run, "slurm_end"), 300)
    assert zl.state(run) == "SUCCEEDED"
    assert [event["start"] for event in events(run, "slurm_start")] == [0, 1]
    assert [event["step"] for event in events(run, "resumed")] == [stopped]
    assert losses(run) == losses(whole)
    name = "adapter_model.safetensors"
    assert (run.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()

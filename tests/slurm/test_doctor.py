"""`zlaunch doctor slurm` on a real cluster, whose nodes have an nvidia-smi that is a script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.rundir.directory import RunDir
from tests.slurm.conftest import Zl, wait

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]


def rows(zl: Zl, *words: str, code: int) -> dict[str, dict[str, Any]]:
    output = zl("doctor", "slurm", "--smoke", "--json", *words, code=code)
    return {row["host"]: row for row in map(json.loads, output.splitlines()) if "host" in row}


def give_nvidia_smi(zl: Zl, script: str) -> None:
    """The nodes are this machine: a PATH with the script reaches them with the environment."""
    folder = zl.home / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    zl.environ["PATH"] = f"{folder}:/usr/bin:/bin"


def test_a_healthy_cluster_blocks_nothing_and_its_nodes_answer(zl: Zl) -> None:
    found = rows(zl, "--device", "cpu", "--nodes", "2", code=0)
    assert sorted(found) == ["cluster", "node1", "node2"]
    assert found["cluster"]["nodes"]["text"] == "2 answered"
    assert found["node1"]["environment"]["text"].startswith("torch")
    assert zl.cluster.run(["squeue", "-h"]).stdout == ""
    assert list(zl.runs.iterdir() if zl.runs.exists() else []) == []


def test_an_old_driver_of_the_nodes_is_reported_and_a_missing_gpu_blocks(zl: Zl) -> None:
    give_nvidia_smi(zl, 'for i in 0 1; do echo "$i, GPU-$i, Tesla V100, 32510, 7.0, 535.1"; done')
    found = rows(zl, "--gpus-per-node", "2", code=None)
    assert found["node1"]["gpus"]["text"] == "2 (Tesla V100)"
    assert "driver 535.1 is too old for CUDA 13.0" in found["node1"]["driver"]["advice"]
    give_nvidia_smi(zl, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    found = rows(zl, "--gpus-per-node", "2", code=1)
    assert "version mismatch" in found["node1"]["gpus"]["advice"]


def test_a_node_whose_driver_is_broken_fails_the_run_in_the_drivers_words(zl: Zl) -> None:
    give_nvidia_smi(zl, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    words = ["--gpus-per-node", "2", "--json", "--", "bash", "-c", "true"]
    run = RunDir(Path(json.loads(zl("slurm", *words).splitlines()[-1])["directory"]))
    wait(lambda: zl.state(run) == "FAILED")
    failure = json.loads((run.nodes_dir / "node-0.json").read_text())["failure"]
    assert (failure["cause"], "version mismatch" in failure["message"]) == ("gpu", True)
    give_nvidia_smi(zl, 'for i in 0 1; do echo "$i, GPU-$i, NVIDIA H100, 81559, 9.0, 580.1"; done')
    run = RunDir(Path(json.loads(zl("slurm", *words).splitlines()[-1])["directory"]))
    wait(lambda: zl.state(run) in ("SUCCEEDED", "FAILED"))
    assert zl.state(run) == "SUCCEEDED"


def test_what_slurm_refuses_is_reported_before_anything_is_queued(zl: Zl) -> None:
    found = rows(zl, "--gpus-per-node", "8", code=1)
    assert "a node of partition 'gpu' has at most 2" in found["cluster"]["partition"]["advice"]
    assert found["cluster"]["start"]["level"] == "bad"
    found = rows(zl, "--device", "cpu", "--partition", "gpuu", code=1)
    assert "did you mean 'gpu'" in found["cluster"]["partition"]["advice"]


def test_busy_nodes_are_not_waited_for_long(zl: Zl) -> None:
    run = zl.submit("sleep 60", "--nodes", "4", "--sbatch", "exclusive")
    found = rows(zl, "--device", "cpu", "--wait", "2", code=0)
    assert found["cluster"]["nodes"]["level"] == "warn"
    assert "--wait SECONDS waits longer" in found["cluster"]["nodes"]["advice"]
    assert rows(zl, "--device", "cpu", "--wait", "0", code=0)["cluster"]["nodes"]["text"] == "not asked"
    zl("cancel", str(run.path))


def test_a_dead_controller_is_named(zl: Zl, tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=none\nSlurmctldHost=localhost\nSlurmctldPort=1\nNodeName=localhost\n")
    zl.environ["SLURM_CONF"] = str(conf)
    found = rows(zl, "--device", "cpu", code=1)
    assert found["cluster"]["slurm"]["level"] == "bad"

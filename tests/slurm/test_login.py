"""A launcher without Slurm and a login host that has it: the run directory travels, all else stays the same."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.rundir.directory import RunDir
from tests.slurm.conftest import Zl, events, wait
from tests.testbed.bed import Farm

pytestmark = [pytest.mark.slurm, pytest.mark.ssh, pytest.mark.timeout(180)]


def test_a_run_is_sent_to_the_login_host_and_followed_from_here(
    zl: Zl, sshd_farm: Callable[[int], Farm], monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = sshd_farm(1)
    home = farm.home("node1")
    (home / ".bash_profile").write_text(f"export SLURM_CONF={zl.environ.pop('SLURM_CONF')}\n")
    zl.environ["SSH_CONFIG_OF_THE_TEST"] = str(farm.ssh_config)
    zl.environ["TOKEN_OF_THE_TEST"] = "never-to-be-written"
    words = ["slurm", "--device", "cpu", "--nodes", "2", "--json", "--login", "node1", "--workdir", "~/my runs",
             "--name", "情感分类 ＡＢ عربي",
             "--set", f"ssh.ssh_config={farm.ssh_config}", "--set", "secrets=[TOKEN_OF_THE_TEST]"]  # fmt: skip
    program = 'test ${#TOKEN_OF_THE_TEST} = 19; echo "rank $RANK"; while [ ! -e go ]; do sleep 0.2; done'
    output = zl(*words, "--", "bash", "-c", program)
    run = RunDir(Path(json.loads(output.splitlines()[-1])["directory"]))
    there = RunDir(home / "my runs" / run.run_id)
    secret = home / "my runs" / ".secrets" / f"{run.run_id}.json"
    wait(lambda: len(events(there, "ranks_started")) == 2)
    assert secret.stat().st_mode & 0o777 == 0o600
    wait(lambda: zl.state(run) == "RUNNING", 40)
    (there.path / "go").touch()
    wait(lambda: zl.state(run) == "SUCCEEDED", 40)
    assert "[1] rank 1" in zl("logs", run.run_id)
    assert "nodes/node-1.json" in zl("pull", run.run_id)
    assert not secret.exists()
    assert not (zl.runs / ".secrets").exists()

    second = zl(*words, "--", "sleep", "100")
    run = RunDir(Path(json.loads(second.splitlines()[-1])["directory"]))
    wait(lambda: len(events(RunDir(home / "my runs" / run.run_id), "ranks_started")) == 2)
    assert "CANCELLED" in zl("cancel", run.run_id)
    assert zl.leftovers(run) == []
    shutil.rmtree(home / "my runs" / run.run_id)
    assert "cannot pack the run's files: " in zl("pull", run.run_id, code=1)
    first = there.run_id
    removed = json.loads(zl("rm", first, run.run_id, "--yes", "--json").splitlines()[-1])
    assert [place["host"] for place in removed["places"]] == ["this machine", "node1"] * 2
    assert [place["bytes"] > 10_000 for place in removed["places"]] == [True, True, True, False]
    assert not there.path.exists()
    assert [path.name for path in zl.runs.iterdir()] == []


def test_a_sweep_is_one_array_on_the_login_host(zl: Zl, sshd_farm: Callable[[int], Farm]) -> None:
    farm = sshd_farm(1)
    home = farm.home("node1")
    (home / ".bash_profile").write_text(f"export SLURM_CONF={zl.environ.pop('SLURM_CONF')}\n")
    output = zl("slurm", "--device", "cpu", "--json", "--login", "node1", "--workdir", "~/runs",
                "--set", f"ssh.ssh_config={farm.ssh_config}", "--sweep", "env.POINT=one,two",
                "--", "bash", "-c", 'echo "$POINT"; [ "$POINT" = two ]')  # fmt: skip
    answer = json.loads(output.splitlines()[-1])
    runs = [RunDir(zl.runs / name) for name in answer["runs"]]
    assert [run.record.ids[0] for run in runs] == [f"{answer['job']}_{index}" for index in range(2)]
    wait(lambda: [zl.state(run) for run in runs] == ["FAILED", "SUCCEEDED"], 60)
    rows = [json.loads(line) for line in zl("report", answer["sweep"], "--json").splitlines()]
    assert [(row["env.POINT"], row["state"]) for row in rows] == [("one", "FAILED"), ("two", "SUCCEEDED")]
    assert "[0] two" in zl("logs", runs[1].run_id)
    there = {*answer["runs"], answer["sweep"]}
    assert {path.name for path in (home / "runs").rglob("*") if path.name in there} == there
    sizes = json.loads(zl("rm", answer["sweep"], "--dry-run", "--json").splitlines()[-1])
    assert {path.name for path in (home / "runs").rglob("*") if path.name in there} == there
    removed = json.loads(zl("rm", answer["sweep"], "--yes", "--json").splitlines()[-1])
    assert [place["host"] for place in removed["places"]].count("node1") == 3  # the sweep and its two points
    assert [place["path"] for place in removed["places"]] == [place["path"] for place in sizes["places"]]
    assert [path for path in (home / "runs").rglob("*") if path.name in there] == []
    assert [path for path in zl.runs.rglob("*") if path.name in there] == []


@pytest.mark.train
@pytest.mark.timeout(400)
def test_a_training_runs_through_the_login_host_and_its_adapter_is_copied_here(
    zl: Zl, sshd_farm: Callable[[int], Farm]
) -> None:
    farm = sshd_farm(1)
    home = farm.home("node1")
    (home / ".bash_profile").write_text(f"export SLURM_CONF={zl.environ.pop('SLURM_CONF')}\n")
    words = ["slurm", "--smoke", "--device", "cpu", "--nodes", "2", "--json", "--login", "node1", "--workdir", "~/runs",
             "--python", sys.executable, "--set", f"ssh.ssh_config={farm.ssh_config}"]  # fmt: skip
    output = zl(*words, "--detach")
    run = RunDir(Path(json.loads(output.splitlines()[-1])["directory"]))
    there = RunDir(home / "runs" / run.run_id)
    assert (there.code / "train" / "training" / "adapter.py").is_file()
    source = json.loads((there.path / "train.json").read_text())["data"]["train"]
    assert source.startswith("inputs/")
    assert (there.path / source).is_file()
    wait(lambda: zl.state(run) in ("SUCCEEDED", "FAILED"), 300)
    assert zl.state(run) == "SUCCEEDED", zl("logs", run.run_id)
    assert len([metric for metric in run.read_metrics() if "loss" in metric]) == 12
    shutil.rmtree(run.adapter)
    assert "adapter_model.safetensors" in zl("pull", run.run_id)
    name = "adapter_model.safetensors"
    assert (run.adapter / name).read_bytes() == (there.adapter / name).read_bytes()
    assert run.result_json.exists()
    assert (run.path / "predictions.jsonl").exists()
    assert not run.checkpoints.exists()
    zl("pull", run.run_id, "--checkpoints")
    assert (run.checkpoints / "step-12" / "COMPLETE").exists()

    absent = zl(*words, "--detach", "--set", "data.train=/only/on/the/cluster.jsonl", code=None)
    assert "neither here nor on the login host" in absent

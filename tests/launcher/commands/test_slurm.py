"""`zlaunch slurm` without a cluster: dry runs, printed scripts and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launcher.backends.base import FakeBackend
from launcher.cli import cli
from launcher.errors import CompatibilityError, TargetError, UsageError
from launcher.lifecycle import attach
from launcher.plan.types import RunPlan
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState


def slurm(*words: str) -> str:
    words = ("slurm", "--device", "cpu", "--nodes", "2", *words, "--", "true")
    done = CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    assert done.return_value == 0
    return done.stdout


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_in_json_prints_the_same_object_as_other_backends() -> None:
    printed = json.loads(slurm("--dry-run", "--json"))
    assert printed["world_size"] == 2
    assert (Path(printed["directory"]) / "train.sbatch").exists()


@pytest.mark.parametrize("points", [(), ("--sweep", "max_restarts=0,1")])
def test_a_dry_run_prints_the_script_and_then_the_json(points: tuple[str, ...]) -> None:
    assert slurm(*points, "--dry-run").startswith("#!/bin/bash")
    assert slurm(*points, "--dry-run", "--json").startswith("{")
    *script, last = slurm(*points, "--print-script", "--json").splitlines()
    assert script[0].startswith("#!/bin/bash")
    assert "directory" in json.loads(last)


BIG = "{model: {path: llama3-70b}, data: {train: train.jsonl}, train: {global_batch_size: 64}}"


def gpu_run(*words: str) -> Any:
    Path("big.yaml").write_text(BIG)
    Path("train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    argv = ("slurm", "big.yaml", "--nodes", "2", "--dry-run", "--json", *words)
    return CliRunner().invoke(cli, argv, standalone_mode=False)


def test_a_job_is_planned_for_the_given_gpu_of_the_nodes() -> None:
    """With the numbers of `zlaunch plan`."""
    done = gpu_run("--gpu", "h100")
    train = json.loads((Path(json.loads(done.stdout)["directory"]) / "train.json").read_text())
    words = ("plan", "big.yaml", "--gpu", "h100", "--nodes", "2", "--gpus", "8", "--json")
    planned = json.loads(CliRunner().invoke(cli, words, standalone_mode=False).stdout)
    assert train["predicted_peak_bytes"] == planned["predicted_peak_bytes"] > 0
    assert train["train"]["zero_stage"] == 3
    assert "not checked" not in done.stderr
    assert "not checked" in gpu_run().stderr


@pytest.mark.parametrize("gpu", ["4090", "24GiB"])
def test_a_job_that_cannot_fit_that_gpu_is_refused_before_the_queue(gpu: str) -> None:
    refused = gpu_run("--gpu", gpu).exception
    assert isinstance(refused, CompatibilityError)
    assert "does not fit" in str(refused)
    assert "model.quantization: nf4" in str(refused.hint)


def test_an_unknown_or_unneeded_gpu_is_refused() -> None:
    assert "not a GPU of the table" in str(gpu_run("--gpu", "h1oo").exception)
    assert "has no effect" in str(gpu_run("--gpu", "h100", "--device", "cpu").exception)


class Queue(FakeBackend):
    """A cluster that takes every job, and a Ctrl-C at the first look at one."""

    def __init__(self, *, announce: bool) -> None:
        super().__init__(states=[RunState.PENDING])

    def state(self, run: RunDir) -> RunState:
        return RunState.CANCELLED if self.cancelled else RunState.PENDING


def test_ctrl_c_right_after_the_submission_leaves_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Queue] = []

    def queue(*, announce: bool) -> Queue:
        made.append(Queue(announce=announce))
        return made[0]

    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("launcher.commands.slurm.SlurmBackend", queue)
    monkeypatch.setattr(attach, "attach", interrupted)
    words = ["slurm", "--device", "cpu", "--wait", "--json", "--", "true"]
    done = CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    assert done.return_value == 130
    assert made[0].submitted == made[0].cancelled
    assert json.loads(done.stdout.splitlines()[-1])["state"] == "CANCELLED"


def test_a_job_that_another_command_cancels_while_it_is_queued_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cancelled(Queue):
        def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
            run.update_record(state="CANCELLED")
            return super().submit(run, plan, secrets)

    monkeypatch.setattr("launcher.commands.slurm.SlurmBackend", Cancelled)
    words = ["slurm", "--device", "cpu", "--", "true"]
    done = CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    assert done.return_value == 130
    assert "was cancelled during its start by another command" in done.stderr
    assert "to continue: zlaunch resume" in done.stdout


def test_waiting_and_not_waiting_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="--wait and --detach"):
        slurm("--wait", "--detach")


def test_a_printed_script_comes_with_its_directory_on_stderr(tmp_path: Path) -> None:
    words = ["slurm", "--device", "cpu", "--print-script", "--", "true"]
    done = CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    (run,) = (tmp_path / "runs").iterdir()
    assert str(run) in done.stderr
    assert done.stdout == (run / "train.sbatch").read_text()


@pytest.mark.parametrize("points", [(), ("--sweep", "max_restarts=0,1")])
def test_a_run_that_slurm_refused_was_never_queued_and_shows_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: tuple[str, ...]
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("scontrol", "sinfo", "sbatch"):
        (tools / name).write_text("#!/bin/sh\necho Unable to contact slurm controller >&2\nexit 1\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    with pytest.raises(TargetError, match="Slurm does not answer"):
        slurm(*points)
    run = next(path.name for path in sorted((tmp_path / "runs").iterdir()) if path.name != "sweeps")
    printed = CliRunner().invoke(cli, ["status", run], catch_exceptions=False).stdout
    assert f"{run}: FAILED (slurm)\n" in printed
    assert "the run was never queued: Slurm does not answer" in printed
    assert f"-> zlaunch resume {run}\n" in printed
    assert "no rank" not in printed
    assert "logs:" not in printed
    status = json.loads(CliRunner().invoke(cli, ["status", run, "--json"], catch_exceptions=False).stdout)
    assert status["failure"]["message"].startswith("the run was never queued")

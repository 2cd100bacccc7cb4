"""`zlaunch slurm` without a cluster: what it prints of a run that is not queued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.backends.base import FakeBackend, RunState
from launcher.cli import cli
from launcher.commands import outcome
from launcher.errors import UsageError
from launcher.runs import RunDir


def slurm(*words: str) -> str:
    words = ("slurm", "--device", "cpu", "--nodes", "2", *words, "--", "true")
    done = CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    assert done.return_value == 0
    return done.stdout


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_in_json_is_the_object_that_other_backends_print() -> None:
    said = json.loads(slurm("--dry-run", "--json"))
    assert said["world_size"] == 2
    assert (Path(said["directory"]) / "train.sbatch").exists()


@pytest.mark.parametrize("points", [(), ("--sweep", "max_restarts=0,1")])
def test_a_dry_run_shows_the_script_and_its_json_comes_last_where_both_are_asked_for(points: tuple[str, ...]) -> None:
    assert slurm(*points, "--dry-run").startswith("#!/bin/bash")
    assert slurm(*points, "--dry-run", "--json").startswith("{")
    *script, last = slurm(*points, "--print-script", "--json").splitlines()
    assert script[0].startswith("#!/bin/bash")
    assert "directory" in json.loads(last)


class Queue(FakeBackend):
    """A cluster that takes every job, and a Ctrl-C at the first look at one."""

    def __init__(self, *, announce: bool) -> None:
        super().__init__(states=[RunState.PENDING])

    def state(self, run: RunDir) -> RunState:
        return RunState.CANCELLED if self.cancelled else RunState.PENDING


def test_ctrl_c_between_the_queue_and_the_first_look_leaves_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Queue] = []

    def queue(*, announce: bool) -> Queue:
        made.append(Queue(announce=announce))
        return made[0]

    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("launcher.commands.slurm.SlurmBackend", queue)
    monkeypatch.setattr(outcome, "attach", interrupted)
    words = ["slurm", "--device", "cpu", "--wait", "--json", "--", "true"]
    done = CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    assert done.return_value == 130
    assert made[0].submitted == made[0].cancelled
    assert json.loads(done.stdout.splitlines()[-1])["state"] == "CANCELLED"


def test_waiting_and_not_waiting_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="--wait and --detach"):
        slurm("--wait", "--detach")

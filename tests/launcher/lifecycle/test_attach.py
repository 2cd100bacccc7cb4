"""Launching commands: a Ctrl-C during the start, and the end of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.base import FakeBackend
from launcher.errors import TargetError
from launcher.job.load import read_job
from launcher.lifecycle import attach
from launcher.plan.types import RunPlan
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState
from tests.beds.plans import target


class Interrupted(FakeBackend):
    """Ctrl-C comes `when`: in the start, or at the first look. `trouble`: why nothing can be ended."""

    when = "submit"
    trouble: Exception | None = None
    looks: Exception | None = None

    def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
        if self.when == "submit":
            raise KeyboardInterrupt
        return super().submit(run, plan, secrets)

    def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
        super().cancel(run)
        if self.trouble is not None:
            raise self.trouble

    def state(self, run: RunDir) -> RunState:
        if self.looks is not None:
            raise self.looks
        return super().state(run)


def launch(root: Path, backend: FakeBackend, **how: Any) -> tuple[int, RunDir]:
    job = read_job(None, [], {"program": ("true",), "name": "zh", "device": "cpu"})
    run = RunDir(root / "zh-20260101-000000-aaaa")
    return attach.launch(job, target(), backend, run=run, **how), run


@pytest.fixture
def at_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(attach, "attach", interrupted)


def test_an_interrupted_start_ends_with_130_and_is_cancelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Interrupted(states=[RunState.SUCCEEDED])  # what the files of an earlier start would say
    code, run = launch(tmp_path, backend)
    assert (code, run.record.state, backend.cancelled) == (130, "CANCELLED", [run.run_id])
    assert "zlaunch resume" in capsys.readouterr().out


def test_a_start_that_cannot_be_cancelled_exits_with_130_and_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Interrupted()
    backend.trouble = TargetError("no host answers")
    code, run = launch(tmp_path, backend, as_json=True)
    output = capsys.readouterr()
    assert (code, run.record.state) == (130, "RUNNING")
    assert output.err.count("no host answers") == 1
    assert json.loads(output.out.splitlines()[-1])["state"] == "RUNNING"


@pytest.mark.usefixtures("at_the_first_look")
@pytest.mark.parametrize(
    ("states", "trouble", "looks", "code", "kept"),
    [
        ([RunState.RUNNING], None, None, 130, "CANCELLED"),
        ([RunState.SUCCEEDED], None, None, 0, "SUCCEEDED"),
        ([RunState.RUNNING], None, TargetError("was never sent to its hosts"), 130, "CANCELLED"),
        ([RunState.RUNNING], TargetError("no host answers"), None, 130, "RUNNING"),
    ],
)
def test_a_run_that_has_just_started_is_cancelled_too(
    tmp_path: Path,
    states: list[RunState],
    trouble: Exception | None,
    looks: Exception | None,
    code: int,
    kept: str,
) -> None:
    backend = Interrupted(states=states)
    backend.when, backend.trouble, backend.looks = "later", trouble, looks
    ended, run = launch(tmp_path, backend)
    assert (ended, run.record.state) == (code, kept)


@pytest.mark.parametrize("again", [False, True])
def test_a_followed_run_that_ctrl_c_cannot_stop_exits_with_130_and_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], again: bool
) -> None:
    class Followed(FakeBackend):
        def state(self, run: RunDir) -> RunState:
            raise KeyboardInterrupt

        def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
            super().cancel(run)
            if again and checkpoint:
                raise KeyboardInterrupt  # and without a checkpoint it does not work either
            raise TargetError("no host answers", hint="plug it in")

    backend = Followed()
    code, run = launch(tmp_path, backend, as_json=True)
    output = capsys.readouterr()
    assert (code, run.record.state, len(backend.cancelled)) == (130, "RUNNING", 2 if again else 1)
    assert "no host answers\n  -> plug it in" in output.err
    assert f"zlaunch cancel {run.run_id}" in output.err
    assert json.loads(output.out.splitlines()[-1])["state"] == "RUNNING"


def test_a_cancelled_run_whose_target_does_not_answer_is_cancelled(tmp_path: Path) -> None:
    class Followed(FakeBackend):
        def state(self, run: RunDir) -> RunState:
            if self.cancelled:
                raise TargetError("no host answers")
            raise KeyboardInterrupt

    code, run = launch(tmp_path, Followed())
    assert (code, run.record.state) == (130, "CANCELLED")


def test_the_end_of_a_start_does_not_overwrite_the_next_start(tmp_path: Path) -> None:
    class Resumed(FakeBackend):
        def state(self, run: RunDir) -> RunState:  # while its results came home, somebody started it again
            run.update_record(submitted=9e9, ids=("8",), state="PENDING")
            return RunState.FAILED

    code, run = launch(tmp_path, Resumed())
    assert (code, run.record.state) == (1, "PENDING")


def test_a_run_cancelled_during_its_start_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = FakeBackend(states=[RunState.RUNNING])
    code, run = launch(tmp_path, backend, is_cancelled=lambda: backend.submitted != [])
    assert (code, run.record.state, backend.cancelled) == (130, "CANCELLED", [run.run_id])
    assert f"zlaunch resume {run.run_id}" in capsys.readouterr().out


@pytest.mark.parametrize("how", [{"detach": True}, {}, {"detach": True, "as_json": True}])
@pytest.mark.parametrize("seen", [None, KeyboardInterrupt(), TargetError("node.sh: exit status 137")])
def test_a_start_that_another_command_cancels_says_so_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: dict[str, bool], seen: BaseException | None
) -> None:
    class Cancelled(FakeBackend):
        def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
            run.update_record(state="CANCELLED")  # by `zlaunch cancel`; it may have killed what started here, too
            if seen is not None:
                raise seen
            return super().submit(run, plan, secrets)

    backend = Cancelled()
    code, run = launch(tmp_path, backend, **how)
    output = capsys.readouterr()
    assert (code, run.record.state, backend.cancelled) == (130, "CANCELLED", [run.run_id])
    assert f"{run.run_id} was cancelled during its start by another command (`zlaunch cancel`)\n" in output.err
    assert f"to continue: zlaunch resume {run.run_id}\n" in output.out + output.err
    assert "exit status 137" not in output.out + output.err
    if "as_json" in how:
        assert json.loads(output.out)["state"] == "CANCELLED"


def test_an_interrupted_detached_start_is_reported_like_one_that_is_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, run = launch(tmp_path, Interrupted(), detach=True)
    output = capsys.readouterr()
    assert (code, "another command" in output.err) == (130, False)
    assert output.out.startswith("CANCELLED\n")
    assert f"to continue: zlaunch resume {run.run_id}\n" in output.out

"""The state of a run as commands see it, and what they write into its record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.backends import current_state
from launcher.backends.base import FakeBackend
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState

RUN_ID = "demo-20260101-000000-aaaa"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / RUN_ID)
    record = RunRecord(run_id=RUN_ID, name="x", backend="fake", created=1.0, ids=("7",), submitted=2.0, state="RUNNING")
    run.save_record(record)
    return run


def answer_slowly(monkeypatch: pytest.MonkeyPatch, states: list[RunState], meanwhile: Callable[[], object]) -> None:
    """Use a backend whose first answer takes so long that `meanwhile` happens first."""

    class Slow(FakeBackend):
        def state(self, run: RunDir) -> RunState:
            if self.states is states and not happened:
                happened.append(meanwhile())
            return super().state(run)

    happened: list[object] = []
    backend = Slow(states=states)
    monkeypatch.setattr(current_state, "backend_of_run", lambda run: backend)


def test_a_final_state_is_kept(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_slowly(monkeypatch, [RunState.FAILED], lambda: None)
    assert current_state.current(run) is RunState.FAILED
    assert run.record.state == "FAILED"


def test_a_slow_answer_about_an_earlier_start_is_not_written_over_the_resumed_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_slowly(
        monkeypatch,
        [RunState.FAILED, RunState.RUNNING],
        lambda: run.update_record(ids=("8",), submitted=3.0, state="PENDING"),
    )
    assert current_state.current(run) is RunState.RUNNING
    assert (run.record.ids, run.record.submitted, run.record.state) == (("8",), 3.0, "RUNNING")


def test_an_end_that_is_seen_while_a_start_is_under_way_is_that_of_the_start_before_and_not_kept(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command would take the record for a cancel of its own start, and end it."""
    run.save_record(RunRecord(run_id=RUN_ID, name="x", backend="fake", created=1.0))
    answer_slowly(monkeypatch, [RunState.CANCELLED], lambda: None)
    assert current_state.current(run) is RunState.CANCELLED
    assert run.record.state == "PENDING"


def test_a_slow_answer_does_not_bring_back_to_life_what_another_command_saw_end(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.update_record(state="PENDING")
    answer_slowly(monkeypatch, [RunState.RUNNING], lambda: run.update_record(state="CANCELLED"))
    assert current_state.current(run) is RunState.CANCELLED
    assert run.record.state == "CANCELLED"

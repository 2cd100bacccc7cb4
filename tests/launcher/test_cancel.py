"""`zlaunch cancel` of a run whose agents never came up; tests/launcher/test_cli.py has running ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher import state
from launcher.backends.base import RunState
from launcher.cli import cli
from launcher.commands.resume import refuse_if_not_resumable
from launcher.errors import UsageError
from launcher.runs import RunDir, RunRecord


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    return tmp_path


def died_early(root: Path, backend: str) -> RunDir:
    """A run whose launcher was killed before it started or sent anything."""
    run = RunDir(root / "a-20260101-000000-aaaa")
    run.write({"plan.json": "{}"})
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend=backend, created=1.0))
    return run


def later(run: RunDir) -> None:
    """Let time pass since the record was written."""
    os.utime(run.run_json, (1.0, 1.0))


@pytest.mark.parametrize("backend", ["local", "ssh"])
def test_a_run_that_never_came_up_is_cancelled_for_good(root: Path, backend: str) -> None:
    run = died_early(root, backend)
    done = CliRunner().invoke(cli, ["cancel", "last"], catch_exceptions=False)
    assert done.stdout == f"{run.run_id}: CANCELLED\n"
    assert run.record.state == "CANCELLED"


def test_a_lost_run_is_cancelled_too(root: Path) -> None:
    run = died_early(root, "ssh")
    later(run)
    assert state.of(run) is RunState.LOST
    done = CliRunner().invoke(cli, ["cancel", "last", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["state"] == run.record.state == "CANCELLED"
    done = CliRunner().invoke(cli, ["cancel", "last"], catch_exceptions=False)
    assert done.stdout == f"{run.run_id}: already CANCELLED\n"


def test_a_run_that_was_never_sent_can_be_resumed_once_nobody_can_be_sending_it(root: Path) -> None:
    run = died_early(root, "ssh")
    with pytest.raises(UsageError, match="is PENDING"):
        refuse_if_not_resumable(run, changed=False)
    later(run)
    assert state.of(run) is RunState.LOST  # which is written down, and stays so
    refuse_if_not_resumable(run, changed=False)

"""`zlaunch cancel` of a run whose agents never came up; tests/launcher/test_cli.py has running ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.runs import RunDir, RunRecord


def test_a_run_that_never_came_up_is_cancelled_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    run = RunDir(tmp_path / "a-20260101-000000-aaaa")
    run.write({"plan.json": "{}"})
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend="local", created=1.0))  # its launcher was killed
    done = CliRunner().invoke(cli, ["cancel", "last"], catch_exceptions=False)
    assert done.stdout == f"{run.run_id}: CANCELLED\n"
    assert run.record.state == "CANCELLED"

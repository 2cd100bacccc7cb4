"""What `zlaunch resume` refuses before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.errors import UsageError
from launcher.runs import RunDir, RunRecord


@pytest.mark.parametrize(("backend", "instead"), [("ssh", "ssh.slots"), ("slurm", "slurm.nodes")])
@pytest.mark.parametrize("flag", ["--gpus", "--procs"])
def test_ranks_of_this_machine_are_no_change_of_a_run_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, instead: str, flag: str
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    run = RunDir(tmp_path / "a-20260101-000000-aaaa")
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend=backend, created=1.0, state="FAILED"))
    with pytest.raises(UsageError, match="runs on this machine") as caught:
        CliRunner().invoke(cli, ["resume", "last", flag, "2"], standalone_mode=False, catch_exceptions=False)
    assert instead in str(caught.value.hint)

"""`zlaunch logs --rank`: which ranks are accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.errors import UsageError
from launcher.rundir.directory import RunDir, RunRecord


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    run = RunDir(tmp_path / "a-20260101-000000-aaaa")
    nodes = [{"node_rank": node, "first_rank": 2 * node, "procs": 2} for node in range(2)]
    run.write({"plan.json": json.dumps({"launch": {"nodes": nodes}})})
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend="local", created=1.0, state="SUCCEEDED"))
    run.write({"logs/node-1/rank-3.log": "three\n"})
    return run


def logs(rank: int) -> str:
    words = ["logs", "last", "--rank", str(rank)]
    return CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False).stdout


def test_a_rank_of_the_run_may_have_an_empty_log(run: RunDir) -> None:
    assert (logs(3), logs(0)) == ("three\n", "")


def test_an_unknown_rank_is_refused_with_the_known_ranks(run: RunDir) -> None:
    with pytest.raises(UsageError, match="has no rank 4; it has ranks 0 to 3"):
        logs(4)


def test_a_rank_of_an_earlier_start_with_more_ranks_can_be_read(run: RunDir) -> None:
    run.write({"logs/node-2/rank-4.log": "four\n"})
    assert logs(4) == "four\n"

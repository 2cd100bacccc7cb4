"""A run in the terminal: the lines for its events and for its end."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.base import FakeBackend
from launcher.lifecycle import attach
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState
from launcher.show import final, live


def test_a_request_names_its_source_if_known() -> None:
    asked = {"event": "request", "request": "stop"}
    assert live.describe({**asked, "by": None}) == "  stop requested"
    assert live.describe({**asked, "by": "Slurm"}) == "  stop requested by Slurm"


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        ({"rank": 1, "host": "h", "exit_code": 3, "signal": None}, "rank 1 on h: exit code 3, cause: bug"),
        ({"rank": None, "node_rank": 1, "host": "h", "exit_code": None, "signal": 9}, "node 1 on h: signal 9, cause"),
        ({"rank": None, "node_rank": 1, "host": "h", "exit_code": None, "signal": None}, "node 1 on h: cause: bug"),
        ({"rank": None, "host": "n[1-2]", "exit_code": None, "signal": None}, "the job on n[1-2]: cause: bug"),
        ({"rank": None, "host": None, "exit_code": None, "signal": None}, "the job: cause: bug"),
    ],
)
def test_a_failure_says_only_what_is_known(tmp_path: Path, failure: dict[str, Any], says: str) -> None:
    run = RunDir(tmp_path / "a-20260101-000000-aaaa")
    run.write({"errors/slurm.json": json.dumps({**failure, "cause": "bug"}), "plan.json": "{}"})
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend="slurm", created=1.0, state="FAILED"))
    shown = io.StringIO()
    final.print_outcome(run, RunState.FAILED, output=shown)
    assert says in shown.getvalue()
    assert "None" not in shown.getvalue()


def test_a_followed_program_shows_what_its_first_rank_prints_in_this_start(tmp_path: Path) -> None:
    class Printing(FakeBackend):
        pieces = ["one\nt", "wo [bold]\n", "three"]

        def state(self, run: RunDir) -> RunState:
            if not self.pieces:
                return RunState.SUCCEEDED
            with run.rank_log(0, 0).open("a") as log:
                log.write(self.pieces.pop(0))
            return RunState.RUNNING

    run = RunDir(tmp_path / "a-20260101-000000-aaaa")
    run.write({"plan.json": '{"train": null}', "logs/node-0/rank-0.log": "of an earlier start\n"})
    started = len("of an earlier start\n")
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend="local", created=1.0, log_start=started))
    shown = io.StringIO()
    assert attach.follow(run, Printing(), output=shown) is RunState.SUCCEEDED
    final.print_outcome(run, RunState.SUCCEEDED, output=shown)
    assert shown.getvalue().splitlines()[1:4] == ["one", "two [bold]", "three"]
    assert f"zlaunch logs {run.run_id}" in shown.getvalue()

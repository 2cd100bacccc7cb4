"""A run in the terminal: the lines for its events and for its end."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.backends.base import FakeBackend
from launcher.lifecycle import attach
from launcher.rundir import reading
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState
from launcher.show import final, frame, live
from tests.beds.pictured import Recorded


def test_a_pipe_gets_a_line_per_event_and_one_on_the_progress_every_ten_seconds(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).plan().submit().ranks().phase("model")
    steps = iter([
        lambda: recorded.event("progress", name="model", unit="bytes", done=1_200_000_000, total=3_100_000_000),
        lambda: recorded.event("note", text="学习 [bold]"),
        lambda: recorded.phase("train", total_steps=63).steps(1, 31).held_out(26, 2.5),
        lambda: recorded.event("request", request="stop", by="Slurm"),
    ])  # fmt: skip
    shown = io.StringIO()

    def state() -> RunState:
        step = next(steps, None)
        if step is not None:
            step()
        return RunState.RUNNING if step is not None else RunState.CANCELLED

    assert live.watch(recorded.run, state, Console(file=shown, width=200)) is RunState.CANCELLED
    lines = [re.sub(r"  [^ ]+ d .* left$", "", line.strip()) for line in shown.getvalue().splitlines()]
    assert lines == [
        "loading the model", "loading the model  1.20 of 3.10 GB", "学习 [bold]", "training", "stop requested by Slurm",
    ]  # fmt: skip
    line = frame.one_line(reading.read(recorded.run, RunState.RUNNING, now=recorded.clock))
    assert line == "step 31/63  loss 1.6367  held out 2.5000  100 tokens/s  2.0 GiB  32 s left"


def test_what_keeps_the_state_from_being_known_is_said_once(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).plan().submit().ranks()
    states = iter([RunState.RUNNING, RunState.RUNNING, RunState.LOST])
    shown = io.StringIO()
    live.watch(recorded.run, lambda: next(states), Console(file=shown), notice=lambda: "host-7 does not answer")
    assert shown.getvalue() == "  host-7 does not answer\n"


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
    run.write({"errors/slurm.json": json.dumps({**failure, "cause": "bug"}), "plan.json": '{"train": {"train": {}}}'})
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


def test_a_run_that_ended_is_not_praised_for_a_model_that_knows_its_records_by_heart(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).plan().submit().ranks().phase("train", total_steps=60)
    recorded.steps(1, 60, loss=lambda step: 4.0 * 0.9**step)
    evaluation = {"before": {"loss": 3.5}, "after": {"loss": 5.1, "records": 12, "accuracy": 0.0}}
    recorded.result(steps=60, eval=evaluation).end()
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100, color_system="standard")
    picture = reading.read(recorded.run, RunState.SUCCEEDED)
    final.print_verdict(picture, console)
    assert "\x1b[1;31moverfits since step 0: held-out loss 3.50 to 5.10" in shown.getvalue()
    plain = io.StringIO()
    final.print_outcome(recorded.run, RunState.SUCCEEDED, output=plain)
    lines = plain.getvalue().splitlines()
    place = lines.index("SUCCEEDED after 1 min 02 s")
    assert lines[place + 1].startswith("overfits since step 0")
    assert f"next: zlaunch chat {recorded.run.run_id}" in lines


def test_a_user_who_leaves_the_view_is_shown_the_way_back_and_a_sweep_starts_no_further_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def left(*_: Any) -> RunState:
        raise live.Left

    monkeypatch.setattr(live, "watch", left)
    run = Recorded(tmp_path).plan().submit().ranks().run
    assert attach.attach(run, FakeBackend()) == 0
    assert f"zlaunch watch {run.run_id}" in capsys.readouterr().out
    assert attach.attach(run, FakeBackend(), as_json=True, left=130) == 130
    shown = capsys.readouterr()
    assert json.loads(shown.out)["state"] == "RUNNING"
    assert "goes on" in shown.err

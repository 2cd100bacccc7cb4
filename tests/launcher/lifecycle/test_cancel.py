"""`zlaunch cancel` of runs whose agents never started, and of sweeps. Running runs are in test_cli.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launcher.backends import current_state
from launcher.cli import cli
from launcher.errors import RunNotFound, TargetError, UsageError
from launcher.lifecycle import submit, sweep
from launcher.node import processes
from launcher.rundir import find
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState
from tests.beds.places import ROOT
from tests.beds.run_bed import out_of_reach


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    return tmp_path


def died_early(root: Path, backend: str) -> RunDir:
    """A run whose launcher was killed before it started or sent anything."""
    run = RunDir(root / "a-20260101-000000-aaaa")
    run.write({"plan.json": '{"train": {"train": {}}}'})
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
    assert current_state.current(run) is RunState.LOST
    done = CliRunner().invoke(cli, ["cancel", "last", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["state"] == run.record.state == "CANCELLED"
    done = CliRunner().invoke(cli, ["cancel", "last"], catch_exceptions=False)
    assert done.stdout == f"{run.run_id}: already CANCELLED\n"


def test_a_run_that_was_never_sent_can_be_resumed_once_its_launcher_must_be_gone(root: Path) -> None:
    run = died_early(root, "ssh")
    with pytest.raises(UsageError, match="is PENDING"):
        submit.refuse_if_not_resumable(run, current_state.observed(run), changed=False)
    later(run)
    assert current_state.current(run) is RunState.LOST  # which is written down, and stays so
    submit.refuse_if_not_resumable(run, current_state.observed(run), changed=False)


def test_a_local_start_that_was_broken_off_is_lost_as_soon_as_nobody_is_at_it(root: Path) -> None:
    run = died_early(root, "local")
    other = RunDir(run.path)
    other.claim("start")
    assert current_state.current(run) is RunState.PENDING
    other.release()
    with subprocess.Popen(["sleep", "60"], cwd=run.path) as setup:  # the setup lines of a launcher that was killed
        assert current_state.current(run) is RunState.PENDING
        setup.kill()
    assert current_state.current(run) is RunState.LOST
    assert "was broken off" in ask("status", "last")
    run.claim("resume")
    submit.refuse_if_not_resumable(run, current_state.observed(run), changed=False)


# ---------------------------------------------------------------------------------------------------------- sweeps


def ask(*words: str) -> str:
    return CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False).stdout


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ask("report", name, "--json").splitlines()]


def a_run(root: Path, name: str, backend: str, state: str) -> RunDir:
    run = RunDir(root / f"{name}-20260101-000000-aaaa")
    run.write({"plan.json": '{"train": {"train": {}}}'})
    run.save_record(RunRecord(run_id=run.run_id, name=name, backend=backend, created=1.0, state=state))
    return run


class InTurn:
    """A launcher of its own that works through the points one, two, three and four on this machine."""

    def __init__(self, root: Path, program: str) -> None:
        words = ["local", "--device", "cpu", "--name", "zh", "--sweep", "env.POINT=one,two,three,four"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launcher", *words, "--", "bash", "-c", program],
            cwd=root, env={**os.environ, "PYTHONPATH": str(ROOT), "HERE": str(root)}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.root = root

    def until(self, file: str) -> None:
        end = time.monotonic() + 60
        while not (self.root / file).exists():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end, file
            time.sleep(0.05)

    @property
    def sweep(self) -> str:
        (name,) = (path.name for path in (self.root / "sweeps").iterdir())
        return name

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


@pytest.fixture
def in_turn(root: Path):  # type: ignore[no-untyped-def]
    """Points that leave a file at their start; all but the first wait to be let pass."""
    program = 'touch "$HERE/started-$POINT"; until [ $POINT = one -o -e "$HERE/pass" ]; do sleep 0.1; done'
    launcher = InTurn(root, program)
    yield launcher
    if launcher.process.poll() is None:
        launcher.process.terminate()
        launcher.end()


def test_a_cancelled_sweep_stops_its_running_point_and_can_be_resumed(
    root: Path, in_turn: InTurn, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn.until("started-two")
    points = sweep.find_sweep(in_turn.sweep)
    assert points is not None
    names = [point.run for point in points.points]
    assert ask("cancel", in_turn.sweep).splitlines() == [
        f"{names[0]}: already SUCCEEDED",
        f"{names[1]}: CANCELLED",
        f"{names[2]}: CANCELLED before it started",
        f"{names[3]}: CANCELLED before it started",
    ]
    assert processes.find_run_processes(names[1]) == []
    code, output = in_turn.end()
    assert (code, "point 3" in output) == (130, False)
    assert f"zlaunch resume {in_turn.sweep}" in output
    assert [row["state"] for row in rows_of(in_turn.sweep)] == ["SUCCEEDED", *["CANCELLED"] * 3]
    listed = {row["run"]: row["state"] for row in map(json.loads, ask("list", "--json").splitlines())}
    assert listed == {name: "SUCCEEDED" if name == names[0] else "CANCELLED" for name in names}
    assert find.find_run("last", root).run_id == names[1]  # the newest that was started
    assert f"{names[3]}: CANCELLED (local" in ask("status", names[3])

    again = json.loads(ask("cancel", in_turn.sweep, "--json"))
    assert [(point["run"], point["was"], point["state"]) for point in again["points"]] == [
        (name, state, state) for name, state in listed.items()
    ]
    assert [point["values"] for point in again["points"]] == [{"env.POINT": p} for p in ("one", "two", "three", "four")]

    monkeypatch.setenv("HERE", str(root))
    (root / "pass").touch()
    ask("resume", names[3])  # a point of its own
    assert [(root / f"started-{point}").exists() for point in ("three", "four")] == [False, True]
    assert CliRunner().invoke(cli, ["resume", in_turn.sweep], standalone_mode=False).return_value == 0
    assert [row["state"] for row in rows_of(in_turn.sweep)] == ["SUCCEEDED"] * 4


def test_a_sweep_cancelled_between_two_points_starts_no_further_point(root: Path, in_turn: InTurn) -> None:
    in_turn.until("started-two")
    points = sweep.find_sweep(in_turn.sweep)
    assert points is not None
    sweep.mark_cancelled(points)  # what `cancel` does first; the running point then ends by itself
    (root / "pass").touch()
    code, output = in_turn.end()
    assert (code, f"{in_turn.sweep} was cancelled: no further point is started" in output) == (130, True)
    assert [row["state"] for row in rows_of(in_turn.sweep)] == ["SUCCEEDED"] * 2 + ["not started"] * 2


def test_a_sweep_cancelled_during_the_start_of_its_first_point_stops_it(root: Path, in_turn: InTurn) -> None:
    while not list(root.glob("sweeps/*/sweep.json")):
        assert in_turn.process.poll() is None, in_turn.end()[1]
        time.sleep(0.001)
    points = sweep.find_sweep(in_turn.sweep)
    assert points is not None
    rows = json.loads(ask("cancel", in_turn.sweep, "--json"))["points"]
    assert [row["was"] for row in rows][1:] == ["not started"] * 3
    code, output = in_turn.end()
    assert code == 130, output
    assert [row["state"] for row in rows_of(in_turn.sweep)][1:] == ["CANCELLED"] * 3
    assert current_state.current(sweep.run_of(points.points[0])).is_final
    assert [processes.find_run_processes(point.run) for point in points.points] == [[], [], [], []]


def test_a_point_that_cannot_be_cancelled_does_not_hide_the_others(root: Path) -> None:
    away = out_of_reach(a_run(root, "away", "ssh", "RUNNING"))
    torn = a_run(root, "torn", "ssh", "PENDING")
    torn.run_json.write_text("{torn")
    early = a_run(root, "early", "ssh", "PENDING")
    points = sweep.new_sweep("s", "ssh", [(run, {"lora.r": 8}) for run in (away, torn, early)])
    sweep.save(points)
    done = CliRunner().invoke(cli, ["cancel", points.sweep_id, "--json"])
    assert isinstance(done.exception, TargetError)
    assert done.exception.exit_code == 1
    assert f"2 of 3 points of {points.sweep_id} could not be cancelled" in str(done.exception)
    rows = json.loads(done.stdout)["points"]
    assert [(row["was"], row["state"], "error" in row) for row in rows] == [
        (None, None, True), (None, None, True), ("PENDING", "CANCELLED", False),
    ]  # fmt: skip


def test_what_lives_of_a_point_that_is_recorded_as_over_is_ended_with_its_sweep(root: Path) -> None:
    over, done = a_run(root, "over", "local", "CANCELLED"), a_run(root, "done", "local", "SUCCEEDED")
    points = sweep.new_sweep("s", "local", [(run, {"lora.r": 8}) for run in (over, done)])
    sweep.save(points)
    with subprocess.Popen(["sleep", "300"], env={**os.environ, "ZLAUNCH_RUN_ID": over.run_id}) as left:
        assert ask("cancel", points.sweep_id).splitlines() == [
            f"{over.run_id}: CANCELLED",
            f"{done.run_id}: already SUCCEEDED",
        ]
        assert left.wait(10) == -signal.SIGKILL
    assert ask("cancel", points.sweep_id).splitlines()[0] == f"{over.run_id}: already CANCELLED"


def test_a_prefix_that_a_sweep_and_another_run_share_cancels_neither(root: Path) -> None:
    point, other = a_run(root, "zh-0", "local", "PENDING"), a_run(root, "zh", "local", "PENDING")
    points = sweep.new_sweep("zh", "local", [(point, {"lora.r": 8})])
    sweep.save(points)
    for command in ("cancel", "resume", "report"):
        with pytest.raises(RunNotFound, match=f"a prefix of the sweep {points.sweep_id} and of {other.run_id}"):
            ask(command, "zh")
    assert (point.record.state, other.record.state) == ("PENDING", "PENDING")
    assert ask("cancel", "zh-sw") == f"{point.run_id}: CANCELLED\n"
    assert ask("cancel", "zh-2") == f"{other.run_id}: CANCELLED\n"


@pytest.mark.parametrize("command", ["status", "logs", "pull", "export"])
def test_a_command_that_takes_no_sweep_names_one_that_does(root: Path, command: str) -> None:
    points = sweep.new_sweep("zh", "local", [(a_run(root, "zh-0", "local", "SUCCEEDED"), {"lora.r": 8})])
    sweep.save(points)
    words = [command, points.sweep_id, *(["--to", "merged"] if command == "export" else [])]
    with pytest.raises(RunNotFound, match="no run") as caught:
        ask(*words)
    assert f"{points.sweep_id} is a sweep: zlaunch report {points.sweep_id}" in str(caught.value.hint)

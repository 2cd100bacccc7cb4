from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.node import processes
from launcher.rundir import logs, state
from launcher.rundir.directory import RunDir
from launcher.rundir.logs import LogLine
from launcher.rundir.state import RunState


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    path = tmp_path / "demo-20260101-000000-abcd"
    for name in ("nodes", "logs/node-0", "logs/node-1", "control"):
        (path / name).mkdir(parents=True)
    return RunDir(path)


def record(run: RunDir, node: int, node_state: str, **changes: Any) -> None:
    me = {"pid": os.getpid(), "start_time": processes.start_time_of(os.getpid()), "boot_id": processes.boot_id()}
    content = {
        **{
            "schema": 1,
            "run_id": run.run_id,
            "node_rank": node,
            "host": socket.gethostname(),
            **me,
            "state": node_state,
        },
        **{"pid_namespace": processes.pid_namespace(), "heartbeat": time.time(), "failure": None},
        **changes,
    }
    (run.path / "nodes" / f"node-{node}.json").write_text(json.dumps(content))


def test_a_run_without_records_is_pending(run: RunDir) -> None:
    assert state.derive_state(run) is RunState.PENDING


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["SUCCEEDED", "SUCCEEDED"], RunState.SUCCEEDED),
        (["STOPPED", "STOPPED"], RunState.CANCELLED),
        (["CANCELLED"], RunState.CANCELLED),
        (["FAILED", "CANCELLED"], RunState.FAILED),
        (["SUCCEEDED", "FAILED"], RunState.SUCCEEDED),  # an elastic run went on without node 1
        (["FAILED", "RUNNING"], RunState.RUNNING),  # still ending
    ],
)
def test_node_0_has_the_verdict_once_every_agent_has_ended(run: RunDir, states: list[str], expected: RunState) -> None:
    for node, node_state in enumerate(states):
        record(run, node, node_state)
    assert state.derive_state(run) is expected


@pytest.mark.parametrize(
    "changes",
    [
        {"start_time": 1},
        {"boot_id": "before the reboot"},
        {"host": "elsewhere", "heartbeat": 1.0},
    ],
)
def test_a_running_record_without_a_living_agent_is_lost(run: RunDir, changes: dict[str, Any]) -> None:
    record(run, 0, "RUNNING", **changes)
    assert state.derive_state(run) is RunState.LOST


def test_an_agent_that_exits_after_its_record_was_read_is_not_lost(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(run, 0, "RUNNING")

    def ends_now(seen: dict[str, Any], *, now: float | None = None) -> bool:
        record(run, 0, "SUCCEEDED")
        return False

    monkeypatch.setattr(state, "is_agent_alive", ends_now)
    assert state.derive_state(run) is RunState.SUCCEEDED


@pytest.mark.parametrize("changes", [{"host": "elsewhere", "pid": 1}, {"pid_namespace": "pid:[1]", "start_time": 1}])
def test_pids_of_another_machine_or_namespace_are_not_looked_up_here(run: RunDir, changes: dict[str, Any]) -> None:
    record(run, 0, "RUNNING", **changes)
    assert state.derive_state(run) is RunState.RUNNING


def test_a_warden_that_still_cleans_up_keeps_the_run_running(run: RunDir) -> None:
    me = {"pid": os.getpid(), "start_time": processes.start_time_of(os.getpid())}
    record(run, 0, "RUNNING", start_time=1, warden=me)
    assert state.derive_state(run) is RunState.RUNNING


def test_the_failure_shown_is_not_an_echo(run: RunDir) -> None:
    record(run, 0, "FAILED", failure={"cause": "nccl", "rank": 0})
    record(run, 1, "FAILED", failure={"cause": "killed", "rank": 1})
    assert (state.first_failure(run) or {})["rank"] == 1


def log(run: RunDir, name: str, data: bytes) -> None:
    with (run.path / "logs" / name).open("ab") as file:
        file.write(data)


def test_every_line_is_given_once_and_only_when_it_is_complete(run: RunDir) -> None:
    follower = logs.LogFollower(run)
    log(run, "node-0/rank-0.log", b"one\ntw")
    assert follower.poll() == [LogLine(0, 0, "one")]
    log(run, "node-0/rank-0.log", b"o\n")
    log(run, "node-1/rank-10.log", b"ten\n")
    log(run, "node-1/rank-2.log", b"two\n")
    log(run, "node-0/agent.log", b"agent\n")
    lines = follower.poll()
    assert lines[:2] == [LogLine(0, None, "agent"), LogLine(0, 0, "two")]
    assert lines[2:] == [LogLine(1, 2, "two"), LogLine(1, 10, "ten")]
    assert follower.poll() == []


def test_one_rank_can_be_followed_alone(run: RunDir) -> None:
    log(run, "node-0/rank-0.log", b"zero\n")
    log(run, "node-0/rank-1.log", b"one\n")
    log(run, "node-0/agent.log", b"agent\n")
    assert [line.text for line in logs.follow_logs(run, rank=1)] == ["one"]


def test_broken_characters_progress_bars_and_an_unfinished_last_line_are_shown(run: RunDir) -> None:
    log(run, "node-0/rank-0.log", b"\xff\xfe caf\xc3\xa9\n 1%\r 50%\r100%\r\nunfinished")
    assert [line.text for line in logs.follow_logs(run)] == ["�� café", "100%", "unfinished"]


def test_an_emptied_log_is_read_from_its_start(run: RunDir) -> None:
    follower = logs.LogFollower(run)
    log(run, "node-0/rank-0.log", b"a long line\n")
    follower.poll()
    (run.path / "logs" / "node-0" / "rank-0.log").write_bytes(b"new\n")
    assert [line.text for line in follower.poll()] == ["new"]


def test_a_log_larger_than_one_read_is_given_completely(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CHUNK", 10)
    log(run, "node-0/rank-0.log", b"".join(b"line %d\n" % number for number in range(50)))
    assert [line.text for line in logs.follow_logs(run)] == [f"line {number}" for number in range(50)]


def test_following_ends_after_the_run_and_misses_nothing(run: RunDir) -> None:
    record(run, 0, "RUNNING")

    def write() -> None:
        for number in range(5):
            log(run, "node-0/rank-0.log", b"%d\n" % number)
            time.sleep(0.05)
        record(run, 0, "SUCCEEDED")

    writer = threading.Thread(target=write)
    writer.start()
    lines = list(logs.follow_logs(run, follow=True, ended=lambda: state.derive_state(run).is_final))
    writer.join()
    assert [line.text for line in lines] == ["0", "1", "2", "3", "4"]

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from launcher.node import processes
from launcher.rundir import logs, state
from launcher.rundir.directory import RunDir
from launcher.rundir.logs import LogBlock
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


def lines_of(blocks: Iterable[LogBlock]) -> list[str]:
    return [line for block in blocks for line in block.lines]


def test_every_line_is_given_once_and_only_when_it_is_complete(run: RunDir) -> None:
    follower = logs.LogFollower(run)
    log(run, "node-0/rank-0.log", b"one\ntw")
    assert list(follower.poll()) == [LogBlock(0, 0, "one\n")]
    log(run, "node-0/rank-0.log", b"o\n")
    log(run, "node-1/rank-10.log", b"ten\n")
    log(run, "node-1/rank-2.log", b"two\n")
    log(run, "node-0/agent.log", b"agent\n")
    lines = list(follower.poll())
    assert lines[:2] == [LogBlock(0, None, "agent\n"), LogBlock(0, 0, "two\n")]
    assert lines[2:] == [LogBlock(1, 2, "two\n"), LogBlock(1, 10, "ten\n")]
    assert list(follower.poll()) == []


def test_one_rank_can_be_followed_alone(run: RunDir) -> None:
    log(run, "node-0/rank-0.log", b"zero\n")
    log(run, "node-0/rank-1.log", b"one\n")
    log(run, "node-0/agent.log", b"agent\n")
    assert lines_of(logs.follow_logs(run, rank=1)) == ["one"]


def test_broken_characters_progress_bars_and_an_unfinished_last_line_are_shown(run: RunDir) -> None:
    log(run, "node-0/rank-0.log", b"\xff\xfe caf\xc3\xa9\n 1%\r 50%\r100%\r\nunfinished")
    assert lines_of(logs.follow_logs(run)) == ["�� café", "100%", "unfinished"]


def test_an_emptied_log_is_read_from_its_start(run: RunDir) -> None:
    follower = logs.LogFollower(run)
    log(run, "node-0/rank-0.log", b"a long line\n")
    list(follower.poll())
    (run.path / "logs" / "node-0" / "rank-0.log").write_bytes(b"new\n")
    assert lines_of(follower.poll()) == ["new"]


def test_a_log_larger_than_one_read_is_given_completely(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CHUNK", 10)
    log(run, "node-0/rank-0.log", b"".join(b"line %d\n" % number for number in range(50)))
    assert lines_of(logs.follow_logs(run)) == [f"line {number}" for number in range(50)]


def test_a_line_without_end_is_given_in_parts(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CHUNK", 8)
    log(run, "node-0/rank-0.log", b"x" * 20)
    follower = logs.LogFollower(run)
    assert lines_of(follower.poll()) == ["x" * 8, "x" * 8]
    assert lines_of(follower.poll(last=True)) == ["x" * 4]


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("tail", [0, 1, 3, 49, 50, 51, 1000])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_tail_is_the_last_lines_of_each_log(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tail: int, end: bytes, chunk: int
) -> None:
    lines = [f"line {number}" if number % 7 else "" for number in range(1, 51)]
    log(run, "node-0/rank-0.log", "\n".join(lines).encode() + end)
    log(run, "node-0/rank-1.log", b"")
    monkeypatch.setattr(logs, "CHUNK", chunk)
    start = logs.start_of_tail(run.path / "logs/node-0/rank-0.log", tail)
    found = (run.path / "logs/node-0/rank-0.log").read_bytes()[start:].decode()
    assert found.removesuffix("\n").split("\n") == (lines[-tail:] if tail else [""])
    monkeypatch.setattr(logs, "CHUNK", 1 << 20)
    assert lines_of(logs.follow_logs(run, tail=tail)) == (lines[-tail:] if tail else [])


def test_what_comes_after_a_tail_is_followed_and_a_later_log_is_read_from_its_start(run: RunDir) -> None:
    log(run, "node-0/rank-0.log", b"one\ntwo\n")
    follower = logs.LogFollower(run, tail=1)
    assert lines_of(follower.poll()) == ["two"]
    log(run, "node-0/rank-0.log", b"three\nfour\n")
    log(run, "node-0/rank-1.log", b"one\ntwo\n")
    assert lines_of(follower.poll()) == ["three", "four", "one", "two"]


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
    assert lines_of(lines) == ["0", "1", "2", "3", "4"]

"""The states of many runs: a target that does not answer holds up its own row only."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import TargetError
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState
from launcher.web import asked_states
from launcher.web.board import Board


class Cluster:
    """Answers for runs, but for those of `silent` only after `answer` is set."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.answer = threading.Event()
        self.now, self.most, self.lock = 0, 0, threading.Lock()
        self.asked: list[str] = []

    def __call__(self, run: RunDir) -> RunState:
        with self.lock:
            self.asked.append(run.run_id)
            self.now += 1
            self.most = max(self.most, self.now)
        if run.run_id in self.silent:
            self.answer.wait(60)
        else:
            time.sleep(0.02)
        with self.lock:
            self.now -= 1
        if "refused" in run.run_id:
            raise TargetError("no such partition")
        return RunState.RUNNING


def a_run(folder: Path, name: str, state: str = "PENDING") -> RunDir:
    run = RunDir(folder / name)
    run.write({"plan.json": '{"train": {"train": {}}}'})
    run.save_record(RunRecord(run_id=name, name=name, backend="slurm", created=1.0, submitted=2.0, state=state))
    return run


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.answer.set()


def test_a_silent_host_leaves_only_its_own_row_open(tmp_path: Path, cluster: Cluster) -> None:
    runs = [a_run(tmp_path, f"run-{number}") for number in range(20)]
    runs += [a_run(tmp_path, "refused"), a_run(tmp_path, "over", "SUCCEEDED"), a_run(tmp_path, "lost", "LOST")]
    cluster.silent = {"run-3"}
    board = Board(lambda: runs, cluster)
    began = time.monotonic()
    found = {row["id"]: row for row in board.rows()}
    assert time.monotonic() - began < 5  # 1 s on an idle machine
    assert [key for key, row in found.items() if row["state"] is None] == ["run-3"]
    assert (found["over"]["state"], found["lost"]["state"]) == ("SUCCEEDED", "RUNNING")
    assert found["refused"]["error"] == "no such partition"
    assert "over" not in cluster.asked
    assert 2 <= cluster.most <= asked_states.AT_ONCE
    assert cluster.asked.count("run-3") == 1
    board.rows()
    assert cluster.asked.count("run-3") == 1  # not again, while it has not answered
    cluster.answer.set()
    deadline = time.monotonic() + 20
    while any(row["state"] is None for row in board.rows()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {row["state"] for row in board.rows() if row["id"].startswith("run")} == {"RUNNING"}


def test_many_silent_hosts_hold_up_nothing_that_is_known(tmp_path: Path, cluster: Cluster) -> None:
    runs = [a_run(tmp_path, f"run-{number}") for number in range(4)]
    board = Board(lambda: runs, cluster)
    assert {row["state"] for row in board.rows()} == {"RUNNING"}
    cluster.silent = {run.run_id for run in runs}
    began = time.monotonic()
    assert {row["state"] for row in board.rows()} == {"RUNNING"}  # the last known ones
    assert time.monotonic() - began < 5

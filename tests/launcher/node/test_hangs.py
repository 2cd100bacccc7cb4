"""Ranks that hang are found on every node, and their stacks show which one differs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.node import hangs, stacks
from launcher.node.hangs import Pulse, Pulses, describe, group_stacks, row_of
from launcher.node.processes import descendants
from tests.beds.agent_bed import Run, bed, wait_for
from train.rundir import heartbeat

Make = Callable[..., Run]
ROOT = Path(__file__).parents[3]
PROGRAM = """
import os, re, time
from train.rundir import heartbeat
heartbeat.show_stacks_on_request()
from train import dist
rank, attempt, signs = int(os.environ["RANK"]), int(os.environ["ZLAUNCH_RESTART_COUNT"]), heartbeat.Heartbeat(LIMIT)
def loop():
    while True:
        pass
def read(path):
    os.path.exists(path) or os.mkfifo(path)
    return open(path).read()
signs.working("start")
signs.stepped(0.1)
for number in range(3):
    signs.step(number)
    time.sleep(0.1)
"""
"""Stands for the training program: `train.dist` waits for other ranks until `go` is there."""
DIST = """
import os, time
def sum_over_ranks():
    while not os.path.exists("go"):
        time.sleep(0.05)
"""
FAULTS = {
    "os.kill(os.getpid(), 19)": "stopped by a signal",
    "loop()": "loop (",
    "time.sleep(300)": "<module> (",
    "re.match('(a+)+$', 'a' * 60 + 'b')": "(re/__init__.py:",
    "read(f'fifo-{rank}')": "read (",
}
"""{what one rank does: what its stack shows}: a loop in Python, and one in C that holds the interpreter's lock, too."""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with bed(tmp_path) as maker:
        yield maker


def program(make: Make, *lines: str, limit: float = 1.0, nodes: tuple[int, ...] = (2,), **launch: Any) -> Run:
    text = PROGRAM.replace("LIMIT", str(limit)) + "\n".join(lines) + "\ndist.sum_over_ranks()\n"
    run = make([sys.executable, "-c", text], [*nodes], shared=False, **launch)
    for place in run.dirs:
        (place / "code/train/rundir").mkdir(parents=True)
        (place / "code/train/__init__.py").touch()
        (place / "code/train/rundir/__init__.py").touch()
        (place / "code/train/dist.py").write_text(DIST)
        shutil.copy(ROOT / "train/rundir/heartbeat.py", place / "code/train/rundir/heartbeat.py")
    return run


def test_the_rank_that_hangs_is_named_whatever_it_does_and_the_files_have_all_stacks(make: Make) -> None:
    runs = {what: program(make, f"if rank == 1: {what}", nodes=(1, 2)).start() for what in FAULTS}
    for what, run in runs.items():
        assert run.wait(60) == [1, 1], what
        failure = run.record(1)["failure"]
        assert (failure["cause"], failure["rank"], failure["node_rank"]) == ("hang", 1, 1), (what, failure)
        assert FAULTS[what] in failure["message"], what
        others, odd = sorted(failure["stacks"], key=lambda group: group["odd"])
        assert (others["ranks"], odd["ranks"], odd["doing"]) == ([0, 2], [1], "step 2"), what
        assert others["frames"][0].startswith("sum_over_ranks (train/dist.py:"), what
        assert [event["stacks"] for event in run.events("hang")] == [failure["stacks"]]
        files = {rank: run.dirs[node] / f"logs/node-{node}/stack-{rank}.txt" for rank, node in ((0, 0), (1, 1), (2, 1))}
        assert all("sum_over_ranks" in files[rank].read_text() for rank in (0, 2))
        assert "limit of 1 s (step 2)" in files[1].read_text()
        assert run.left() == []


def test_a_hang_restarts_the_run_if_the_job_says_so(make: Make) -> None:
    lines = ("if attempt == 0 and rank == 1: loop()", "if attempt: open('go', 'w').close()")
    run = program(make, *lines, max_restarts=1)
    assert run.start().wait(30) == [0]
    assert (run.record()["state"], run.record()["restarts"]) == ("SUCCEEDED", 1)
    assert [event["cause"] for event in run.events("restart")] == ["hang"]


def test_a_rank_that_has_announced_long_work_or_moves_bytes_makes_the_others_wait_without_a_hang(make: Make) -> None:
    long = program(make, "if rank == 1: signs.working('checkpoint'); time.sleep(3); open('go', 'w').close()")
    read = program(
        make, "if rank == 1:\n signs.working('data')\n for _ in range(30):",
        "  open('/proc/self/exe', 'rb').read(1 << 20); time.sleep(0.1)", " open('go', 'w').close()", limit=0.2,
    )  # fmt: skip
    assert [run.start() for run in (long, read)]
    for run in (long, read):
        assert run.wait(30) == [0], run.record()["failure"]
        assert run.events("hang") == []


def test_an_agent_that_was_stopped_with_its_ranks_does_not_take_that_for_a_hang() -> None:
    pulses = Pulses()
    pulses.of_rank[0] = Pulse(os.getpid(), os.memfd_create("signs"), 100.0)
    sign = {"count": 1, "doing": "step 1", "limit": 3.0, "io": False}
    os.pwrite(pulses.of_rank[0].fd, json.dumps(sign).encode(), 0)
    assert not pulses.all_quiet([0], 101.0)
    assert not pulses.all_quiet([0], 900.0)
    assert pulses.all_quiet([0], 904.0)
    assert not pulses.all_quiet([], 904.0)
    assert not pulses.all_quiet([0, 1], 904.0)  # a rank without signs
    pulses.clear()


def test_a_program_of_the_users_has_no_signs_and_never_hangs(make: Make) -> None:
    run = make(f'[ -z "${hangs.WATCH_FD}" ] && [ ! -e /proc/self/fd/5 ]', cooperative=False)
    assert run.go() == 0
    assert run.events("hang") == []


def test_a_run_that_hangs_can_be_cancelled_while_its_stacks_are_taken(make: Make) -> None:
    run = program(make, "if rank == 1: os.kill(os.getpid(), 19)").start().wait_started()
    wait_for(lambda: len(descendants(run.record()["pid"])) > 2)  # two ranks, and what takes the stacks
    run.signal(0, signal.SIGINT)
    time.sleep(0.6)
    run.signal(0, signal.SIGINT)
    assert run.wait(20) == [130]
    assert run.left() == []


def row(rank: int, *frames: str, state: str = "") -> dict[str, Any]:
    return {"rank": rank, "host": "h", "state": state, "doing": "step 3", "quiet": 9.0, "frames": list(frames)}


WAITS = ("all_reduce (torch/distributed/distributed_c10d.py:3252)", "step (train/training/loop.py:9)")


@pytest.mark.parametrize(
    ("rows", "odd"),
    [
        ([row(0, *WAITS), row(1, "f (a.py:1)")], [[1]]),
        ([row(0, "f (a.py:1)"), row(1, *WAITS)], [[0]]),
        ([row(0, *WAITS), row(1, *WAITS, state="stopped by a signal")], [[1]]),
        ([row(0, *WAITS), row(1, *WAITS)], []),
        ([row(0, "locked (train/hub/cachedir.py:31)"), row(1, "open (pathlib.py:1044)")], [[1]]),
        ([row(0, "f (a.py:1)"), row(1, "g (a.py:1)")], []),
        ([row(0, "f (a.py:1)"), row(1, "g (a.py:1)"), row(2, "f (a.py:7)")], [[1]]),
        ([row(0, *WAITS), row(1, "b (torch/distributed/x.py:1)"), row(2, *WAITS)], [[1]]),
        ([row(0, "f (a.py:1)"), *(row(rank, f"g{rank} (a.py:1)") for rank in range(1, 40)), row(40, *WAITS)], None),
        ([], []),
    ],
)
def test_the_odd_ranks_are_those_that_do_not_wait_for_others_or_else_the_few(rows: Any, odd: Any) -> None:
    groups = group_stacks(rows)
    assert len(groups) <= hangs.MOST_GROUPS
    assert describe(groups).startswith("the run hangs")
    if odd is not None:
        assert [group["ranks"] for group in groups if group["odd"]] == odd
        assert sorted(rank for group in groups for rank in group["ranks"]) == [row["rank"] for row in rows]


@pytest.mark.parametrize("value", [None, 3, {}, {"rank": "x"}, {**row(1), "frames": 7}, {**row(1), "quiet": "long"}])
def test_what_another_node_sends_is_checked(value: Any) -> None:
    assert row_of(value) is None


def test_text_of_another_node_has_no_control_characters() -> None:
    found = row_of({**row(1, "\x1b]0;title\x07" + "x" * 999), "host": "h\nh", "more": [1]})
    assert found is not None
    assert found["host"] == "h?h"
    assert len(found["frames"][0]) == hangs.MOST_CHARS
    assert found["frames"][0].isprintable()
    assert "more" not in found


def test_auto_is_twenty_times_the_median_step_and_at_least_ten_minutes() -> None:
    signs = heartbeat.Heartbeat("auto")
    assert signs._limit() == 600
    for seconds in (1.0, 1.0, 5000.0):
        signs.stepped(seconds)
    assert signs._limit() == 600
    for _ in range(4):
        signs.stepped(100.0)
    assert signs._limit() == 2000
    assert heartbeat.Heartbeat(7)._limit() == 7
    assert (heartbeat.WATCH_FD, heartbeat.SIGN_BYTES) == (hangs.WATCH_FD, hangs.SIGN_BYTES)


def test_stacks_are_those_of_the_main_thread_and_of_a_thread_of_the_program() -> None:
    dump = (
        'Thread 0x1 [zl] (most recent call first):\n  File "/r/code/train/records/files.py", line 9 in read\n\n'
        'Thread 0x2 (most recent call first):\n  File "/usr/lib/python3.12/threading.py", line 1 in wait\n\n'
        'Current thread 0x3 (most recent call first):\n  File "/e/lib/python3.12/site-packages/a/b.py", line 2 in f\n'
    )
    assert stacks.frames_of(dump) == ["f (a/b.py:2)", "another thread:", "read (train/records/files.py:9)"]
    assert stacks.frames_of("") == stacks.frames_of_py_spy("Error: permission") == []
    spied = (
        'Process 5: x\n\nThread 7 (idle): "MainThread"\n    g (a.py:3)\n    <module> (/r/code/train/x.py:4)\nThread 8'
    )
    assert stacks.frames_of_py_spy(spied) == ["g (a.py:3)", "<module> (train/x.py:4)"]


def test_a_process_that_handles_no_signal_is_not_sent_one() -> None:
    assert not stacks.catches(os.getpid(), signal.SIGQUIT)
    signal.signal(signal.SIGQUIT, lambda *_: None)
    try:
        assert stacks.catches(os.getpid(), signal.SIGQUIT)
    finally:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)

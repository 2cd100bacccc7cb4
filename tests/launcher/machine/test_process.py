from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.machine import process
from launcher.node import processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "300"]) as child:
        yield child
        child.kill()


def test_a_result_keeps_the_output_of_the_command() -> None:
    result = process.run(["sh", "-c", 'cat; echo "$0" >&2', "a b'$(x)"], stdin=b"in")
    assert (result.code, result.stdout, result.stderr) == (0, "in", "a b'$(x)\n")


def test_a_failed_command_shows_itself_its_status_and_its_last_ten_lines() -> None:
    with pytest.raises(process.CommandError) as caught:
        process.run(["sh", "-c", "seq 30 >&2; exit 3"])
    text = str(caught.value)
    assert "exit status 3" in text
    assert text.splitlines()[-10:] == [f"  {number}" for number in range(21, 31)]
    assert caught.value.result.code == 3


def test_without_check_the_status_is_returned() -> None:
    assert process.run(["sh", "-c", "kill -9 $$"], check=False).code == 137


def test_a_missing_program_is_named() -> None:
    with pytest.raises(process.CommandError, match="no-such-program") as caught:
        process.run(["no-such-program"])
    assert caught.value.hint == "is no-such-program installed?"


def test_a_time_out_kills_everything_that_the_command_started(tmp_path: Path) -> None:
    with pytest.raises(process.CommandError, match=r"longer than 0\.3 s"):
        process.run(["sh", "-c", "sleep 300 & echo $! > pid; wait"], timeout=0.3, cwd=tmp_path)
    pid = int((tmp_path / "pid").read_text())
    assert process.wait_until(lambda: (processes.process_of(pid) or processes.Process(0, 0, "Z", 0)).state == "Z", 5)


def test_passthrough_returns_the_status() -> None:
    assert process.passthrough([sys.executable, "-c", "raise SystemExit(7)"]) == 7


ANSWERS = """
import signal, sys, time
def ended(*_):
    print("ended", flush=True)
    sys.exit(9)
signal.signal(signal.SIGINT, lambda *_: print("cut", flush=True))
signal.signal(signal.SIGTERM, ended)
print("here", flush=True)
while True:
    time.sleep(0.1)
"""
"""No bash: while it waits for a `sleep`, it may drop a SIGINT of which the sleep did not die."""


def test_passthrough_leaves_ctrl_c_to_the_command_and_passes_a_termination_on() -> None:
    code = "import sys; from launcher.machine import process; "
    code += "sys.exit(process.passthrough([sys.executable, '-c', sys.argv[1]]))"
    argv = [sys.executable, "-c", code, ANSWERS]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as ours:
        assert ours.stdout is not None
        assert ours.stdout.readline() == "here\n"
        os.killpg(ours.pid, signal.SIGINT)  # as a terminal does
        assert ours.stdout.readline() == "cut\n"
        ours.terminate()
        assert ours.stdout.readline() == "cut\n"  # first as a Ctrl-C
        assert ours.stdout.readline() == "ended\n"
        assert ours.wait(10) == 9


def test_a_process_is_known_by_pid_start_time_and_boot(sleeper: subprocess.Popen[bytes]) -> None:
    start = processes.start_time_of(sleeper.pid)
    assert processes.is_same_process(sleeper.pid, start, processes.boot_id())
    assert not processes.is_same_process(sleeper.pid, (start or 0) + 1, processes.boot_id())
    assert not processes.is_same_process(sleeper.pid, start, "another boot")
    assert not process.signal_process(sleeper.pid, (start or 0) + 1, processes.boot_id(), signal.SIGKILL)
    assert sleeper.poll() is None


def test_waiting_ends_with_the_process(sleeper: subprocess.Popen[bytes]) -> None:
    start = processes.start_time_of(sleeper.pid)
    assert not process.wait_gone(sleeper.pid, start, 0.1)
    sleeper.kill()
    assert process.wait_gone(sleeper.pid, start, 5)
    sleeper.wait()
    assert process.wait_gone(sleeper.pid, start, 0)


@pytest.mark.parametrize(("deaf_to", "least"), [("", 0.0), ("INT", 0.2), ("INT TERM", 0.4)])
def test_a_tree_is_interrupted_then_terminated_then_killed(tmp_path: Path, deaf_to: str, least: float) -> None:
    trap = f"trap '' {deaf_to};" if deaf_to else "trap 'kill $!; exit' INT;"
    script = f"{trap} sleep 300 & echo $! > pid; while :; do wait; done"
    child = subprocess.Popen(["sh", "-c", script], cwd=tmp_path, start_new_session=True)
    process.wait_until((tmp_path / "pid").exists, 5)
    time.sleep(0.1)
    below = int((tmp_path / "pid").read_text())
    started = time.monotonic()
    gone = process.terminate_tree(
        child.pid, processes.start_time_of(child.pid), processes.boot_id(), interrupt_timeout=0.2, terminate_timeout=0.2
    )
    assert gone
    assert least <= time.monotonic() - started < least + 2
    child.wait(5)
    if deaf_to != "INT":
        assert process.wait_until(lambda: not processes.is_alive(below, processes.start_time_of(below)), 5)
    else:
        os.kill(below, signal.SIGKILL)

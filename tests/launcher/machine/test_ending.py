"""How commands end: the terminal closes, signals come, output cannot be written. With real processes and terminals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.node import processes

ROOT = Path(__file__).parents[3]


class Zl:
    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "tmp").mkdir()
        self.environ = {**os.environ, "PYTHONPATH": str(ROOT), "ZLAUNCH_RUNS": str(home / "runs"),
                        "TMPDIR": str(home / "tmp"), "OMP_NUM_THREADS": "1"}  # fmt: skip

    def start(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        argv = [sys.executable, "-m", "launcher", *words]
        return subprocess.Popen(argv, cwd=self.home, env={**self.environ, **more.pop("env", {})}, **{
            key: value for key, value in given.items() if key != "env"
        })  # fmt: skip

    def on_terminal(self, *words: str) -> tuple[subprocess.Popen[bytes], int]:
        """Start a command as the leader of a session with its own terminal; returns it and the terminal's other end."""
        master, slave = pty.openpty()

        def control() -> None:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        process = self.start(*words, stdin=slave, stdout=slave, stderr=slave, preexec_fn=control)
        os.close(slave)
        return process, master

    def run_ids(self) -> list[str]:
        return [path.name for path in (self.home / "runs").glob("*-*-*")]

    def state(self) -> str:
        done = self.start("status", "last", "--json")
        return str(json.loads(done.communicate(timeout=60)[0])["state"])

    def left(self) -> list[Any]:
        """Processes of the runs, and files in the temporary directory."""
        found = [pid for run in self.run_ids() for pid in processes.find_run_processes(run)]
        return [*found, *(self.home / "tmp").iterdir()]


@pytest.fixture
def zl(tmp_path: Path) -> Zl:
    return Zl(tmp_path)


def wait(done: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def started(zl: Zl) -> bool:
    return any((zl.home / "runs" / run / "logs/node-0/rank-0.log").exists() for run in zl.run_ids())


PROGRAM = ("local", "--device", "cpu", "--", "bash", "-c", "echo up; sleep 300")


def test_a_closed_terminal_stops_the_run_and_leaves_nothing(zl: Zl) -> None:
    process, master = zl.on_terminal(*PROGRAM)
    wait(lambda: started(zl))
    os.close(master)
    assert process.wait(60) == 130
    assert zl.left() == []
    assert zl.state() == "CANCELLED"


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGTERM, signal.SIGHUP, signal.SIGTERM]]
)
def test_a_signal_stops_the_run_and_leaves_nothing(zl: Zl, numbers: list[signal.Signals]) -> None:
    process = zl.start(*PROGRAM)
    wait(lambda: started(zl))
    for number in numbers:  # a session manager sends them all at once
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in out + err
    assert zl.left() == []
    assert zl.state() == "CANCELLED"


def test_a_run_goes_on_when_the_reader_of_its_output_leaves(zl: Zl) -> None:
    program = ("local", "--device", "cpu", "--", "bash", "-c", "for i in {1..20}; do echo $i; sleep 0.1; done")
    process = zl.start(*program)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    assert zl.state() == "SUCCEEDED"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_check_of_records_ends_with_all_that_it_started(zl: Zl, number: signal.Signals) -> None:
    fifo = zl.home / "slow.jsonl"
    fifo.write_text('{"instruction": "a", "output": "b"}\n')
    slow = zl.home / "slow.py"
    slow.write_text(f"#!{sys.executable}\nimport os, sys, tempfile, time\n"
                    "if sys.argv[1] == '-c':\n    raise SystemExit  # asked for its packages: it has all of them\n"
                    "open(tempfile.mkdtemp() + '/x', 'w')\n"
                    f"open({str(zl.home / 'up')!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)\n")  # fmt: skip
    slow.chmod(0o755)
    process = zl.start("data", "check", "--smoke", "--device", "cpu", "--set", f"local.python={slow}")
    wait((zl.home / "up").exists)
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, b"interrupted")
    assert not processes.is_alive(int((zl.home / "up").read_text()), None)
    assert zl.left() == []


CHILD = """
import os, signal, sys, tempfile, time
with tempfile.TemporaryDirectory() as made:
    open(sys.argv[1], "w").write(str(os.getpid()))
    if sys.argv[2] == "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(300)
"""
PASS = "import sys; from launcher.machine import process; sys.exit(process.passthrough(sys.argv[1:]))"


@pytest.mark.parametrize("how", ["closed", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("kind", ["orderly", "stubborn"])
def test_a_command_on_the_terminal_ends_as_at_ctrl_c(zl: Zl, how: str, kind: str) -> None:
    master, slave = pty.openpty()

    def control() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    up = zl.home / "up"
    argv = [sys.executable, "-c", PASS, sys.executable, "-c", CHILD, str(up), kind]
    process = subprocess.Popen(
        argv, env=zl.environ, cwd=zl.home, stdin=slave, stdout=slave, stderr=slave, preexec_fn=control
    )
    os.close(slave)
    child = int(wait(lambda: up.exists() and up.read_text()))
    time.sleep(0.3)
    if how == "closed":
        os.close(master)
    else:
        process.send_signal(getattr(signal, how))
    assert process.wait(30) in (130, 143)
    assert not processes.is_alive(child, None)
    if kind == "orderly":
        assert zl.left() == []
    if how != "closed":
        os.close(master)


@pytest.mark.parametrize(
    "env", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"},
            {"PYTHONIOENCODING": "gbk"}, {"PYTHONIOENCODING": "latin-1:strict"}],
)  # fmt: skip
def test_no_encoding_ends_a_command(zl: Zl, env: dict[str, str]) -> None:
    process = zl.start("local", "--device", "cpu", "--name", "x", "--", "printf", "情感 ✓ 🙂 é\n", env=env)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, b"Traceback" in err) == (0, False), err
    assert b"SUCCEEDED" in out
    listed = zl.start("list", env=env)
    assert listed.communicate(timeout=60)[0]
    assert listed.returncode == 0
    missing = zl.start("local", "情感🙂.yaml", env=env)
    assert b"no such job file" in missing.communicate(timeout=60)[1]
    assert missing.returncode == 2


@pytest.mark.parametrize("words", [("local", "--help"), ("--help",), ("plan", "--model", "llama3-8b", "--gpu", "h100")])
def test_output_that_cannot_be_written_is_one_clear_error_or_none(zl: Zl, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        process = zl.start(*words, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == b"error[ZL-FILE-03]: cannot write the output: No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    process = zl.start(*words, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode in (1, 141), err) == (True, b"")  # Click and Rich have their own status for it
    closed = zl.start(*words, preexec_fn=lambda: os.close(1))
    _, err = closed.communicate(timeout=60)
    assert (closed.returncode, err) == (0, b"")


@pytest.mark.parametrize(
    ("word", "env"),
    [(b"caf\xe9.yaml", {}), ("情感.yaml".encode(), {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})],
)
def test_a_word_that_is_no_text_is_refused(zl: Zl, word: bytes, env: dict[str, str]) -> None:
    argv = [sys.executable, "-m", "launcher", "local", word]
    done = subprocess.run(argv, cwd=zl.home, env={**zl.environ, **env}, capture_output=True)
    assert done.returncode == 2
    assert b"is not text in" in done.stderr


def test_a_full_pipe_that_does_not_block_is_waited_for(zl: Zl) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    process = zl.start("--help", stdout=writer)
    os.close(writer)
    time.sleep(1.5)
    assert process.poll() is None
    with os.fdopen(reader, "rb") as file:
        assert file.read().lstrip(b"x").startswith(b"Usage")
    assert process.wait(30) == 0

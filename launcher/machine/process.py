"""Start and end local processes: the only place in the launcher that does.

Commands are argument lists; no shell sees them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launcher.errors import TargetError
from launcher.machine.interrupts import handled
from launcher.node import processes
from launcher.node.files import last_lines, tail


@dataclass(frozen=True)
class Result:
    argv: tuple[str, ...]
    code: int
    """Exit status; 128 + n after signal n."""
    stdout: str
    stderr: str
    seconds: float

    @property
    def last_lines(self) -> list[str]:
        return last_lines(self.stderr, 10) or last_lines(self.stdout, 10)


class CommandError(TargetError):
    """A local command failed. Shows the command, its exit status and its last ten lines."""

    code = "ZL-MACHINE-01"

    def __init__(self, result: Result, why: str, *, hint: str | None = None) -> None:
        lines = "".join(f"\n  {line}" for line in result.last_lines)
        super().__init__(f"{' '.join(result.argv)}\n  {why}{lines}", hint=hint)
        self.result = result


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout: float | None = None,
    stdin: bytes = b"",
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    descriptors: Sequence[int] = (),
) -> Result:
    """Run a command in its own session and wait for it. It inherits `descriptors` under their numbers.

    After `timeout` seconds, and at Ctrl-C, the command and everything that it started are killed. Raises CommandError
    if it cannot start, takes too long or, with `check`, exits with a status other than 0.
    """
    words, started = tuple(os.fspath(word) for word in argv), time.monotonic()
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=cwd, env=env, start_new_session=True, pass_fds=descriptors,
        )  # fmt: skip
    except OSError as error:
        why = f"cannot be started: {error.strerror}"
        raise CommandError(Result(words, 127, "", "", 0.0), why, hint=f"is {words[0]} installed?") from error
    try:
        stdout, stderr = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired as expired:
        _kill_session(process)
        result = _result(words, process, expired.stdout or b"", expired.stderr or b"", started)
        raise CommandError(result, f"took longer than {timeout:g} s") from None
    except BaseException:
        _kill_session(process)
        raise
    result = _result(words, process, stdout, stderr, started)
    if check and result.code != 0:
        raise CommandError(result, f"exit status {result.code}")
    return result


def _result(words: tuple[str, ...], process: subprocess.Popen[bytes], out: bytes, err: bytes, started: float) -> Result:
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Result(words, code, out.decode(errors="replace"), err.decode(errors="replace"), time.monotonic() - started)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    process.wait()


class SocketProcess:
    """A command whose input and output are the other end of a socket."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Start it, in its own session. Raises CommandError."""
        self.socket, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the socket
        try:
            self._process = subprocess.Popen(
                list(argv), stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._errors, start_new_session=True
            )
        except OSError as error:
            self.socket.close()
            raise CommandError(Result(tuple(argv), 127, "", "", 0.0), f"cannot be started: {error.strerror}") from error
        finally:
            theirs.close()

    def last_words(self) -> str:
        """The last line that it wrote to standard error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # where it ended the socket, its words are on their way
        self._errors.seek(0)
        return " ".join(last_lines(self._errors.read().decode(errors="replace"), 1))

    def close(self) -> None:
        """End it and all that it started."""
        self.socket.close()
        _kill_session(self._process)
        self._errors.close()


class LineProcess:
    """A command in its own session that is read line by line while it runs, and may be given lines."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        errors_apart: bool = False,
    ) -> None:
        """Start it. Standard error comes with the lines, or apart as `errors`. Raises CommandError."""
        self._errors = tempfile.TemporaryFile() if errors_apart else None  # noqa: SIM115 - closed by `end`
        try:
            self._process = subprocess.Popen(
                list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors or subprocess.STDOUT,
                env=env, cwd=cwd, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise CommandError(Result(tuple(argv), 127, "", "", 0.0), f"cannot be started: {error.strerror}") from error

    def line(self) -> str | None:
        """The next line that it writes; None at the end of its output."""
        assert self._process.stdout is not None
        try:
            raw = self._process.stdout.readline()
        except ValueError:  # `end` has closed it
            return None
        return raw.decode(errors="replace").rstrip("\r\n") if raw else None

    def write(self, line: str) -> None:
        """Give it a line. Raises BrokenPipeError if it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode("utf-8", "replace"))
        self._process.stdin.flush()

    def errors(self, most: int = 8192) -> str:
        """The end of what it wrote to standard error, if that is apart."""
        if self._errors is None:
            return ""
        try:
            size = os.fstat(self._errors.fileno()).st_size
            return os.pread(self._errors.fileno(), most, max(0, size - most)).decode(errors="replace")
        except (OSError, ValueError):  # `end` has closed it
            return ""

    def interrupt(self) -> None:
        """Send it and what it started a Ctrl-C."""
        with contextlib.suppress(ProcessLookupError):
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGINT)

    def wait(self) -> int:
        """Its exit status, 128 + n after signal n, when it has ended."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def end(self, seconds: float = 0.0) -> None:
        """End it and all that it started; as after a Ctrl-C if it ends within `seconds`."""
        if seconds:
            self.interrupt()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a line that it never read
            self._process.stdin.close()
        _kill_session(self._process)
        if self._errors is not None:
            self._errors.close()


ENDING_SECONDS = 5.0
"""Seconds that a command on this terminal has to end after a request, before the next harder one."""


def passthrough(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> int:
    """Run a command on the streams of this terminal; return its exit status, 128 + n after signal n.

    The terminal itself sends it Ctrl-C, and the command decides what to do (a chat continues). Of other signals that
    would end this process, and of the terminal's end, it hears as of a Ctrl-C, so that it removes what is half done. If
    it goes on, it is terminated and then killed. Main thread only. Raises CommandError.
    """
    children: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT and not asked:
            asked.append(number)
            for child in children:
                child.send_signal(signal.SIGINT)

    try:
        with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), pass_on):
            with handled((signal.SIGHUP,), signal.SIG_IGN):  # the child inherits this: only we tell it of the hang-up
                children.append(subprocess.Popen(list(argv), env=env, cwd=cwd, stdout=stdout, stderr=stderr))
            code = _wait_or_end(children[0], asked)
    except OSError as error:
        why = f"cannot be started: {error.strerror}"
        raise CommandError(Result(tuple(argv), 127, "", "", 0.0), why) from error
    return code if code >= 0 else 128 - code


def _wait_or_end(child: subprocess.Popen[bytes], asked: Sequence[int]) -> int:
    """Wait for a child; once `asked` holds a signal, end the child within ENDING_SECONDS each of two harder ones."""
    while not asked:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(ENDING_SECONDS)
    for end in (child.terminate, child.kill):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(ENDING_SECONDS)
        end()
    return child.wait()


def signal_process(pid: int, start_time: int | None, boot_id: str, signum: int) -> bool:
    """Signal the recorded process and no other; False if it is gone."""
    if not processes.is_same_process(pid, start_time, boot_id):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
    return True


def working_in(folder: Path) -> list[int]:
    """Pids of the living processes whose working directory is this one."""
    found = []
    for pid, living in processes.process_table().items():
        with contextlib.suppress(OSError):
            if living.state not in "ZX" and Path(f"/proc/{pid}/cwd").samefile(folder):
                found.append(pid)
    return found


def wait_gone(pid: int, start_time: int | None, timeout: float) -> bool:
    """Wait until the process has ended; False if it is still alive after `timeout` seconds."""
    try:
        handle = os.pidfd_open(pid)
    except (OSError, AttributeError):  # gone already, or a kernel before 5.3
        return wait_until(lambda: not processes.is_alive(pid, start_time), timeout)
    try:
        return not processes.is_alive(pid, start_time) or bool(select.select([handle], [], [], timeout)[0])
    finally:
        os.close(handle)


def wait_until(done: Callable[[], bool], timeout: float, pause: float = 0.05) -> bool:
    """Call `done` every `pause` seconds until it is true or the time is over; its last answer."""
    end = time.monotonic() + timeout
    while not done():
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
    return True


def terminate_tree(
    pid: int, start_time: int | None, boot_id: str, *, interrupt_timeout: float, terminate_timeout: float
) -> bool:
    """End a recorded process: interrupt, terminate, then kill it with all its descendants. True if it is gone.

    The process gets `interrupt_timeout` and `terminate_timeout` seconds after these signals.
    """
    for signum, timeout in ((signal.SIGINT, interrupt_timeout), (signal.SIGTERM, terminate_timeout)):
        if not signal_process(pid, start_time, boot_id, signum) or wait_gone(pid, start_time, timeout):
            return True
    below = [(child, processes.start_time_of(child)) for child in processes.descendants(pid)]
    for target, born in [(pid, start_time), *below]:
        signal_process(target, born, boot_id, signal.SIGKILL)
    return all(wait_gone(target, born, 5.0) for target, born in [(pid, start_time), *below])


def last_log_lines(log: Path, count: int = 10) -> list[str]:
    """The last lines of a log file in any encoding; empty if there is no file."""
    return last_lines(tail(log), count)

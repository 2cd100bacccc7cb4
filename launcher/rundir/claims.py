"""Who works on a run right now: one command that starts it, or several that end or read it.

A kernel lock is the truth where the file system has one, because it ends with its process. Beside it each command
leaves a file that says who, where and since when: for the message to whoever comes second, and for file systems whose
locks do not reach other machines. A command of another machine counts as gone once its file has not been touched for a
minute.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from launcher.errors import UsageError
from launcher.node import files, processes, run_files

BEAT = 10.0
"""Seconds between two touches of the file of a command that is at work."""
GONE_AFTER = 60.0
"""Seconds without a touch after which a command of another machine counts as gone."""
ATTEMPTS = 4
"""On a file system without locks, two commands that see each other both step back and try again."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    lock: str
    doing: str
    exclusive: bool
    user: str
    host: str
    pid: int
    start_time: int | None
    boot_id: str
    pid_namespace: str
    since: float

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"`zlaunch {self.doing}` of {self.user} (pid {self.pid} on {self.host}, since {since})"

    def is_gone(self, silent: float) -> bool:
        """Whether its command has ended. `silent`: seconds since it last touched its file."""
        if (self.boot_id, self.pid_namespace) == (processes.boot_id(), processes.pid_namespace()):
            return not processes.is_alive(self.pid, self.start_time)
        rebooted = self.host == socket.gethostname() and self.boot_id != processes.boot_id()
        return rebooted or silent > GONE_AFTER


class Busy(UsageError):
    """Another command works on the same run."""

    code = "ZL-RUN-04"


class Claim:
    """The right to work on a run, until `release` or the end of the process."""

    def __init__(self, folder: Path, doing: str, *, exclusive: bool = True, lock: str = "start") -> None:
        """Take the right. Raises Busy if another command has it; `exclusive`: if any other command has a part of it.

        On a full or read-only disk there is only the kernel's lock, or none: a run must be cancelled all the same.
        """
        self._file: Path | None = None
        self._handle: int | None = None
        self._ended = threading.Event()
        self._folder = folder
        self._own = Holder(
            lock=lock, doing=doing, exclusive=exclusive, user=_user(), host=socket.gethostname(), pid=os.getpid(),
            start_time=processes.start_time_of(os.getpid()), boot_id=processes.boot_id(),
            pid_namespace=processes.pid_namespace(), since=time.time(),
        )  # fmt: skip
        for attempt in range(ATTEMPTS):
            has_locks = self._lock(folder / f".{lock}.lock")
            self._write()
            others = [other for other in self._others() if exclusive or other.exclusive]
            if not others:
                break
            self.release()
            self._ended.clear()
            if has_locks or attempt == ATTEMPTS - 1:
                raise self._busy(others)
            time.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - spreads attempts; nothing secret
        if self._file is not None:
            threading.Thread(target=self._beat, args=(self._file,), daemon=True).start()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        self._ended.set()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()
            self._file = None
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _lock(self, file: Path) -> bool:
        """Take the kernel's lock; return whether there is one. Raises Busy."""
        mode = (fcntl.LOCK_EX if self._own.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
        try:
            self._handle = handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(handle, mode)
            return True
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                return False
        end = time.monotonic() + 0.5  # the other command may be about to write its file, or only have looked
        while not (others := self._others()) and time.monotonic() < end:
            time.sleep(0.02)
            with contextlib.suppress(OSError):
                fcntl.flock(handle, mode)
                return True
        self.release()
        raise self._busy([other for other in others if self._own.exclusive or other.exclusive])

    def _busy(self, others: list[Holder]) -> Busy:
        who = " and ".join(map(str, others)) or "another command"
        verb = "work" if len(others) > 1 else "works"
        return Busy(
            f"{who} {verb} on {self._folder.name} right now",
            hint=f"wait for it; zlaunch status {self._folder.name} shows the run",
        )

    def _write(self) -> None:
        name = f"{self._own.host}-{self._own.pid}-{os.urandom(4).hex()}.json"
        file = self._folder / run_files.CLAIMS / name
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            files.write_atomic(file, msgspec.json.encode(self._own))
            self._file = file
        except OSError:
            self._file = None

    def _others(self) -> list[Holder]:
        """Living holders of the same lock. The clock of the file system says how long they have been silent."""
        now = time.time()
        with contextlib.suppress(OSError):
            now = self._file.stat().st_mtime if self._file is not None else now
        found = []
        for file, holder in _holders(self._folder):
            if file == self._file or holder.lock != self._own.lock:
                continue
            with contextlib.suppress(OSError):
                if not holder.is_gone(now - file.stat().st_mtime):
                    found.append(holder)
                else:
                    file.unlink()
        return found

    def _beat(self, file: Path) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(file)


def is_being_started(folder: Path) -> bool:
    """Whether a command has the right to start this run alone, as far as that is known here."""
    for file, holder in _holders(folder):
        with contextlib.suppress(OSError):
            silent = time.time() - file.stat().st_mtime
            if holder.lock == "start" and holder.exclusive and not holder.is_gone(silent):
                return True
    try:
        handle = os.open(folder / ".start.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until it is closed; who takes it meanwhile tries again
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)
    finally:
        os.close(handle)
    return False


def _holders(folder: Path) -> Iterator[tuple[Path, Holder]]:
    for file in folder.glob(f"{run_files.CLAIMS}/*.json"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):  # it has just ended
            yield file, msgspec.json.decode(file.read_bytes(), type=Holder)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a user's name
        return f"uid {os.getuid()}"

"""How far a long copy between machines is, as lines on standard error."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from launcher.machine.language import spoken

FIRST_AFTER = 2.0
"""Seconds without a line: most copies are over by then."""
EVERY = 5.0


class ByteProgress:
    """Counts the bytes of one or several copies at once; threads may share it."""

    def __init__(self, what: str, total: int = 0) -> None:
        """`what`: as in `sending data to 4 hosts`. `total`: bytes; `expect` adds to it."""
        self.what, self.total, self.done = what, total, 0
        self.begun = time.monotonic()
        self.next_line = self.begun + FIRST_AFTER
        self.lock = threading.Lock()

    def expect(self, size: int) -> None:
        with self.lock:
            self.total += size

    def moved(self, size: int) -> None:
        """Note that so many more bytes are over, and print a line if one is due."""
        with self.lock:
            self.done += size
            now = time.monotonic()
            if now < self.next_line:
                return
            self.next_line = now + EVERY
            rate = self.done / (now - self.begun)
            left = f", {max(0.0, self.total - self.done) / rate:.0f} s left" if rate and self.total else ""
            total = f" of {shown(self.total)}" if self.total else ""
            spoken.say(f"{self.what}: {shown(self.done)}{total}, {shown(rate)}/s{left}")


@contextlib.contextmanager
def waiting(what: str, file: Path | None = None) -> Iterator[None]:
    """Around a call that tells nothing: a line about how long it has taken, and how much it has written to `file`."""
    over, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        wait = FIRST_AFTER
        while not over.wait(wait):
            wait, seconds = EVERY, time.monotonic() - begun
            size = file.stat().st_size if file and file.exists() else 0
            text = f"{shown(size)}, {shown(size / seconds)}/s" if size else f"{seconds:.0f} s so far"
            spoken.say(f"{what}: {text}")

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def shown(size: float) -> str:
    """`512 B` · `31.5 MB` · `2.13 GB`"""
    for unit, factor, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 0)):
        if size >= factor:
            return f"{size / factor:.{digits}f} {unit}"
    return f"{size:.0f} B"


class Counted:
    """A file that is read by something that reports nothing: its reads are counted."""

    def __init__(self, file: IO[bytes], progress: ByteProgress) -> None:
        self._file, self._progress = file, progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._progress.moved(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

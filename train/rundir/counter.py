"""How far a phase is, as events of the run."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

from train.rundir.run_files import RunDir

SECONDS = 1.0
"""Between two events of a phase at least, and MOST_SECONDS at most: a long phase needs no more lines than a short."""
MOST_SECONDS = 5.0
LINES_AFTER, LINES_EVERY = 2.0, 2.5
"""Seconds: before the first line of a command without a run, and between two."""


class Counter:
    """Counts what a phase has done. A phase of less than a second writes nothing."""

    def __init__(self, rundir: RunDir, phase: str, unit: str) -> None:
        self.rundir, self.phase, self.unit = rundir, phase, unit
        self.begun = self.written = time.monotonic()

    def at(self, done: float, total: float | None = None) -> None:
        """Note that `done` of `total` is done; no total: unknown."""
        now = time.monotonic()
        if now - self.written >= min(max(SECONDS, (now - self.begun) / 50), MOST_SECONDS):
            self.written = now
            known = {"total": round(total)} if total else {}
            self.rundir.event("progress", name=self.phase, unit=self.unit, done=round(done), **known)


Counted = Callable[[float, float | None], None]
"""Called with (done, in all; None: unknown)."""


class Lines:
    """What a command without a run is at, as lines on standard error, from its third second on.

    `answering: 40 of 500 records, 12 s left`; work that counts nothing: `loading the base model: 5 s so far`. A thread
    writes, because long work may be one call into a library.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        """`file`: instead of standard error."""
        self.file = file
        self.what = self.unit = ""
        self.done = self.total = 0.0
        self.begun = time.monotonic()
        self.over = threading.Event()
        threading.Thread(target=self._write_all, daemon=True).start()

    def __enter__(self) -> Lines:
        global _lines
        _lines = self
        return self

    def __exit__(self, *exc: object) -> None:
        global _lines
        _lines = None
        self.over.set()

    def now(self, what: str, unit: str) -> Counted:
        self._begin(what, unit)

        def at(done: float, total: float | None = None) -> None:
            if self.what != what:  # something else came between
                self._begin(what, unit)
            self.done, self.total = done, total or 0.0

        return at

    def _begin(self, what: str, unit: str) -> None:
        self.done = self.total = 0.0
        self.what, self.unit, self.begun = what, unit, time.monotonic()

    def _write_all(self) -> None:
        wait = LINES_AFTER
        while not self.over.wait(wait):
            wait = LINES_EVERY
            if self.what:
                with contextlib.suppress(OSError, ValueError):  # closed: nobody reads it
                    print(self.line(), end="\n", file=self.file or sys.stderr, flush=True)

    def line(self) -> str:
        seconds = time.monotonic() - self.begun
        done, total = self.done, self.total
        if not done:
            return f"{self.what}: {seconds:.0f} s so far"
        of, left = (f" of {total:,.0f}", f", {seconds * max(0.0, total / done - 1):.0f} s left") if total else ("", "")
        if self.unit != "bytes":
            return f"{self.what}: {done:,.0f}{of} {self.unit}{left}"
        of = f" of {total / 1e6:,.1f}" if total else ""
        return f"{self.what}: {done / 1e6:,.1f}{of} MB, {done / 1e6 / max(seconds, 1e-3):,.1f} MB/s{left}"


_lines: Lines | None = None
"""Those of this process; a training has none."""
_run: RunDir | None = None
"""The run of this process, if it is a training."""


def count_in(rundir: RunDir) -> None:
    """From now on, `doing` with a phase writes events of this run."""
    global _run
    _run = rundir


def doing(what: str, unit: str = "", phase: str = "") -> Counted:
    """Other work begins; call what is returned if its `unit` can be counted.

    A command without a run shows it as Lines. A training counts it if it names its phase.
    """
    if _lines:
        return _lines.now(what, unit)
    return Counter(_run, phase, unit).at if _run and phase else lambda done, total: None

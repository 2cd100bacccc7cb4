"""How far a phase is, as events of the run."""

from __future__ import annotations

import sys
import time

from train.rundir.run_files import RunDir

SECONDS = 1.0
"""Between two events of a phase at least, and MOST_SECONDS at most: a long phase needs no more lines than a short."""
MOST_SECONDS = 5.0


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


class Lines:
    """The same as lines on standard error, for commands that have no run: `answered 40 of 500 records, 12 s left`."""

    def __init__(self, doing: str, unit: str) -> None:
        self.doing, self.unit = doing, unit
        self.begun = self.written = time.monotonic()

    def at(self, done: float, total: float | None = None) -> None:
        now = time.monotonic()
        if now - self.written >= MOST_SECONDS / 2:
            self.written = now
            left = f", {(now - self.begun) * (total / done - 1):.0f} s left" if total and done else ""
            of = f" of {total:,.0f}" if total else ""
            print(f"{self.doing} {done:,.0f}{of} {self.unit}{left}", file=sys.stderr, flush=True)

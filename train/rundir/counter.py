"""How far a phase is, as events of the run."""

from __future__ import annotations

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

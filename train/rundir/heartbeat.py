"""Signs of progress for the agent of the node, and stacks on its request.

The agent gives each rank a file in memory (WATCH_FD). The rank writes into its first bytes what it is doing and how
many seconds the next sign may take; launcher/node/hangs.py reads it. Behind them, faulthandler writes the stacks of all
threads when the agent sends SIGQUIT: in C, so also while a call into C does not return or a loop holds the
interpreter's lock.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import statistics
from collections import deque

WATCH_FD = "ZLAUNCH_WATCH_FD"
"""The variable with the descriptor of the file; missing without an agent (torchrun, DeepSpeed's launcher)."""
SIGN_BYTES = 256
"""Size of the part with the sign; stacks follow."""
LEAST = 600.0
"""Seconds without a step that `auto` always allows."""
STEPS = 20
"""`auto` allows as many times the median step."""
OTHER_WORK = 6
"""Loading, a batch of an evaluation and a save may take as many times as long as a step."""
REMEMBERED = 50
"""Steps of the median."""


def show_stacks_on_request() -> None:
    """Register the signal for stacks. Call it before imports, which a stalled file system may block."""
    if WATCH_FD in os.environ:
        faulthandler.register(signal.SIGQUIT, file=int(os.environ[WATCH_FD]), all_threads=True)


class Heartbeat:
    """The signs of one rank. Without an agent they go nowhere."""

    def __init__(self, hang_timeout: float | str = "auto") -> None:
        """`hang_timeout`: seconds that a step may take, or `auto`."""
        self.hang_timeout = hang_timeout
        self.fd = int(os.environ.get(WATCH_FD, "-1"))
        self.count = 0
        self.seconds: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def watched(self) -> bool:
        return self.fd >= 0

    def step(self, number: int) -> None:
        """Optimizer step `number` begins. The first one of a start also compiles."""
        if self.seconds:
            self._sign(f"step {number}", self._limit(), io=False)
        else:
            self.working(f"step {number}")

    def stepped(self, seconds: float) -> None:
        """An optimizer step took `seconds`."""
        self.seconds.append(seconds)

    def working(self, doing: str) -> None:
        """Other work than a step begins or goes on. Bytes that this process reads or writes count as progress, too."""
        self._sign(doing, OTHER_WORK * self._limit(), io=True)

    def _limit(self) -> float:
        if not isinstance(self.hang_timeout, str):
            return float(self.hang_timeout)
        return max(LEAST, STEPS * statistics.median(self.seconds)) if self.seconds else LEAST

    def _sign(self, doing: str, limit: float, *, io: bool) -> None:
        if self.watched:
            self.count += 1
            text = json.dumps({"count": self.count, "doing": doing, "limit": limit, "io": io})
            os.pwrite(self.fd, text.encode().ljust(SIGN_BYTES), 0)

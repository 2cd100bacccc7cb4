"""Which signals are requests, and how a loop waits for signals."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Dict, List

SAME_SIGNAL = 0.5
"""Seconds in which a second SIGTERM counts as the first: schedulers signal both warden and agent."""


REQUEST_OF_SIGNAL: Dict[int, str] = {
    signal.SIGINT: "stop",
    signal.SIGTERM: "stop",
    signal.SIGUSR2: "stop",  # Slurm sends it before preemption and before the time limit
    signal.SIGUSR1: "checkpoint",
}
SIGNALS = (*REQUEST_OF_SIGNAL, signal.SIGCHLD, signal.SIGHUP)
"""Signals that warden and agent handle. SIGHUP is among them so that a closed terminal does not kill; ranks do not
inherit a handler, but they would inherit SIG_IGN."""


class Signals:
    """Turns signals into readable bytes, so that the loop sleeps until something happens."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)
        signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked before the fork, so that none was lost

    def read(self) -> List[int]:
        with suppress(BlockingIOError):
            return list(os.read(self.reader, 4096))
        return []

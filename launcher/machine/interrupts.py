"""Make SIGTERM and the terminal's hang-up end a command like Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, FrameType | None], None] | signal.Handlers
ECHO_SECONDS = 1.0
"""A hang-up comes from the kernel and again from the shell, and a session manager sends SIGTERM beside it: signals that
follow one another within this time are one request."""


@contextlib.contextmanager
def handled(numbers: tuple[signal.Signals, ...], handler: Handler) -> Iterator[None]:
    """Handle these signals with `handler` inside the context. Main thread only.

    An ignored signal stays ignored, as `nohup` wants it.
    """
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    saved = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, before in saved.items():
            signal.signal(number, before)


_last: dict[int, float] = {}
"""{signal: when it came last}"""


def _interrupt(number: int, frame: FrameType | None) -> None:
    now, hung_up = time.monotonic(), signal.SIGHUP in _last
    echo = any(now - before < ECHO_SECONDS for before in _last.values())
    _last[number] = now
    if not echo and not (number == signal.SIGHUP and hung_up):  # a terminal hangs up only once
        raise KeyboardInterrupt


@contextlib.contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM and SIGHUP inside the context. Main thread only."""
    with handled((signal.SIGTERM, signal.SIGHUP), _interrupt):
        yield

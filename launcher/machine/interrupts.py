"""Make SIGTERM and the terminal's hang-up end an attached command like Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def handled(numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle these signals with `handler` inside the context. Main thread only.

    An ignored signal stays ignored: `nohup zlaunch`, and backends whose runs survive the terminal.
    """
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    saved = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, before in saved.items():
            signal.signal(number, before)


@contextlib.contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM and SIGHUP inside the context. Main thread only."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handled((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield

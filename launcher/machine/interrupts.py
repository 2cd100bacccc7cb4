"""SIGTERM and the terminal's hang-up end an attached command the way Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def handled(numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within it these signals call `handler`. Main thread only.

    One that is ignored stays so: `nohup zlaunch`, and backends whose runs outlive the terminal.
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
    """Within it SIGTERM and SIGHUP raise KeyboardInterrupt. Main thread only."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handled((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield

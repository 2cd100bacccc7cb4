"""What an agent waits for: files that become ready, each with what is to be done then."""

from __future__ import annotations

import select

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Callable, Dict

    from ..light import socket

READ, WRITE = select.POLLIN, select.POLLIN | select.POLLOUT


class Loop:
    """The module selectors would do the same, and its import costs a host more than all that is waited for."""

    def __init__(self) -> None:
        self.poll = select.poll()
        self.calls: Dict[int, Callable[[], None]] = {}

    def watch(self, file: int | socket.socket, call: Callable[[], None], events: int = READ) -> None:
        """Call when the file is ready, failed or is at its end. Watching a file anew replaces what was said of it."""
        number = file if isinstance(file, int) else file.fileno()
        self.calls[number] = call
        self.poll.register(number, events)

    def forget(self, file: socket.socket) -> None:
        """No more of this file; before it is closed. One that is not watched is forgotten already."""
        if self.calls.pop(file.fileno(), None) is not None:
            self.poll.unregister(file)

    def wait(self, seconds: float) -> None:
        """Sleep until something is ready, and do what is to be done; at most so long."""
        for number, _ in self.poll.poll(1000 * seconds):
            call = self.calls.get(number)
            if call is not None:  # else an earlier call of this round has closed it
                call()

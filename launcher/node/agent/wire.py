"""The control channel: JSON lines over TCP."""

from __future__ import annotations

import json
import os
import socket
import time

from ..addresses import stream_addresses
from ..fields import FAILURE, NODE, STATES, Fields, boolean, integer, list_of, maybe, one_of, shallow, text

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from ..files import Json


class Connection:
    """JSON lines over a non-blocking socket."""

    LIMIT = 1 << 20
    """Bytes of a message, once the other end is known."""
    UNPROVEN_LIMIT = 1 << 12
    """Bytes before that."""
    UNREAD_LIMIT = 1 << 24
    """Bytes that wait for an end that does not read."""

    def __init__(self, sock: socket.socket, source: str = "") -> None:
        sock.setblocking(False)
        self.sock = sock
        self.source = source
        """The address of the other end."""
        self.opened = time.monotonic()
        self.received = b""
        self.pending = b""
        self.peer: Optional[int] = None
        """The node rank at the other end, once that end has proved that it knows the token."""
        self.nonce = os.urandom(16).hex()
        self.heard = time.monotonic()
        self.closed: Optional[OSError] = None

    @property
    def trusted(self) -> bool:
        return self.peer is not None

    def send(self, message: Json) -> None:
        self.send_line(line_of(message))

    def send_line(self, line: bytes) -> None:
        self.pending += line
        self.flush()
        if len(self.pending) > self.UNREAD_LIMIT:
            self.closed = ConnectionAbortedError("reads nothing")

    def flush(self) -> None:
        try:
            while self.pending:
                self.pending = self.pending[self.sock.send(self.pending) :]
        except (BlockingIOError, InterruptedError):
            pass  # the socket's buffer is full; the loop tries again
        except OSError as error:
            self.closed = error

    def receive(self) -> List[Json]:
        """Return the complete messages that have come. Sets `closed` at the end of the stream and at any error."""
        try:
            data = self.sock.recv(65536)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            self.closed = error
            return []
        if not data:
            self.closed = ConnectionResetError("closed by the other end")
            return []
        self.heard = time.monotonic()
        *lines, self.received = (self.received + data).split(b"\n")
        try:
            messages = [json.loads(line.decode()) for line in lines if line]
        except (ValueError, RecursionError):
            messages, self.received = [None], b""
        limit = self.LIMIT if self.trusted else self.UNPROVEN_LIMIT
        if len(self.received) > limit or not all(isinstance(message, dict) for message in messages):
            self.closed = ConnectionAbortedError("not our protocol")
            return []
        return messages


def line_of(message: Json) -> bytes:
    return json.dumps(message).encode() + b"\n"


_ATTEMPT = {"attempt": integer()}
REPORTS = {
    "hello": Fields({}),
    "failing": Fields({**_ATTEMPT, "failure": FAILURE}),
    "ended": Fields({**_ATTEMPT, "outcome": text(64)}),
    "quiet": Fields({**_ATTEMPT, "quiet": boolean}),
    "stacks": Fields({**_ATTEMPT, "rows": list_of(shallow, 1 << 16)}),
    "request": Fields({"request": one_of("stop", "force", "checkpoint")}),
    "beat": Fields({}),
    "again": Fields({}),
    "bye": Fields({}),
}
"""What an agent says to node 0, by its `say`."""
COMMANDS = {
    "start": Fields({**_ATTEMPT, "table": list_of(NODE, 1 << 20)}),
    "stop": Fields({}),
    "force": Fields({}),
    "checkpoint": Fields({}),
    "stacks": Fields(_ATTEMPT),
    "end": Fields(_ATTEMPT),
    "finish": Fields({"state": one_of(*STATES), "failure": maybe(FAILURE)}),
    "beat": Fields({}),
}
"""What node 0 tells the other agents to do, by its `do`."""


def fits(table: Dict[str, Fields], kind: Any, message: Json) -> bool:
    """Whether a message is one of the table. Its number, if it has one, is a positive integer."""
    number = message.get("number")
    return (
        type(kind) is str
        and kind in table
        and table[kind](message)
        and (number is None or (type(number) is int and number > 0))
    )


def resolve(address: str, port: int) -> Tuple[int, Any]:
    """Return (family, socket address), IPv4 first: the hosts of a cluster have it in common."""
    family, _, _, _, target = min(stream_addresses(address, port), key=lambda info: info[0] != socket.AF_INET)
    return family, target

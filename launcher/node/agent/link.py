"""The control channel's end on every node but the first."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time

from ..proofs import proof, same_proof
from .launch import beat_of, eof_grace
from .wire import COMMANDS, Connection, fits, resolve

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Callable, List, Optional

    from ..files import Json


class Link:
    """Keeps one connection to the hub, and repeats after a reconnect what the hub may have missed."""

    def __init__(
        self, launch: Json, node_rank: int, selector: selectors.BaseSelector, obey: Callable[[Json], None]
    ) -> None:
        self.launch, self.node_rank, self.selector, self.obey = launch, node_rank, selector, obey
        self.connection: Optional[Connection] = None
        self.connected = False
        self.met = False
        self.outbox: List[Json] = []
        """Reports of this attempt, and requests. A new connection sends them again: the old one may have lost them."""
        self.number = 0
        self.tries = 0
        now = time.monotonic()
        self.lost_at: float = now + launch["start_timeout"]
        self.next_try = now
        self.next_beat = now
        self.silent_after = max(1.0, min(15.0, launch["heartbeat_timeout"] / 3))

    def _connect(self, now: float) -> None:
        self.tries += 1
        self.next_try = now + min(1.0, 0.05 * 2 ** min(self.tries, 5))
        try:
            family, target = resolve(self.launch["master_addr"], self.launch["control_port"])
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError:
            return
        self.connection = Connection(sock)
        self.connected = False
        self.selector.register(sock, selectors.EVENT_WRITE, self._ready)
        code = sock.connect_ex(target)
        if code not in (0, errno.EINPROGRESS):
            self._drop(OSError(code, os.strerror(code)))

    def _ready(self) -> None:
        connection = self.connection
        if connection is None:
            return
        if not self.connected:
            code = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._drop(OSError(code, os.strerror(code)))
                return
            self.connected = True
            self.selector.modify(connection.sock, selectors.EVENT_READ, self._ready)
        for message in connection.receive():
            if connection.closed is not None:
                break
            self._message(connection, message)
        if connection.closed is not None:
            self._drop(connection.closed)

    def _message(self, connection: Connection, message: Json) -> None:
        if "nonce" in message:
            answer = proof(self.launch["token"], "agent", str(message["nonce"]))
            hello = {"say": "hello", "node_rank": self.node_rank, "run_id": self.launch["run_id"]}
            connection.send({**hello, "proof": answer, "nonce": connection.nonce})
        elif not connection.trusted:
            expected = proof(self.launch["token"], "hub", connection.nonce)
            if not same_proof(message.get("proof"), expected):
                connection.closed = ConnectionAbortedError("not our hub")
                return
            connection.peer = 0
            self._alive(connection)
            for report in self.outbox:
                connection.send(report)
        elif not fits(COMMANDS, message.get("do"), message):
            connection.closed = ConnectionAbortedError("not our protocol")
        else:
            self._alive(connection)
            if message.get("do") != "beat":
                self.obey(message)

    def _alive(self, connection: Connection) -> None:
        self.met = True
        self.tries = 0
        connection.heard = time.monotonic()
        self.lost_at = connection.heard + self.launch["heartbeat_timeout"]

    def _drop(self, error: OSError) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        self.selector.unregister(connection.sock)
        connection.sock.close()
        self.connected = False
        now = time.monotonic()
        # A living host without our hub answers "refused" or "reset"; a cut cable gives no answer.
        if self.met and isinstance(error, (ConnectionResetError, ConnectionRefusedError, BrokenPipeError)):
            self.lost_at = min(self.lost_at, now + eof_grace(self.launch))

    def report(self, message: Json) -> None:
        self.number += 1
        message = {**message, "number": self.number}
        self.outbox.append(message)
        if self.connection is not None and self.connection.trusted:
            self.connection.send(message)

    def new_attempt(self) -> None:
        """Forget the last attempt's reports. Requests stay: they may not have arrived, and they still hold."""
        self.outbox = [message for message in self.outbox if message["say"] == "request"]

    def tick(self, now: float) -> None:
        connection = self.connection
        if connection is not None and connection.closed is not None:
            self._drop(connection.closed)
        elif connection is not None and now - connection.heard > self.silent_after:
            if connection.trusted:
                # A close without a word would leave 5 s to return. On an overloaded host that is too little.
                connection.send({"say": "again"})
            self._drop(TimeoutError("silent"))
        elif connection is not None and connection.trusted and now >= self.next_beat:
            self.next_beat = now + beat_of(self.launch)
            connection.send({"say": "beat"})
        if self.connection is None and now >= self.next_try:
            self._connect(now)

    def hub_is_lost(self, now: float) -> bool:
        return now >= self.lost_at

    def close(self) -> None:
        if self.connection is not None and self.connection.trusted:
            self.connection.send({"say": "bye"})
        self._drop(OSError("done"))

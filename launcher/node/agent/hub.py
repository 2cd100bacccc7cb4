"""Node 0's end of the control channel: accepts the other agents."""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import suppress
from functools import partial

from .launch import beat_of
from .wire import Connection, proof, resolve, same_proof

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Dict, List, Set

    from ..files import Json
    from .coordinator import Coordinator


class Hub:
    """Accepts the other agents and hands their messages to the coordinator."""

    def __init__(self, launch: Json, selector: selectors.BaseSelector, coordinator: Coordinator) -> None:
        self.launch, self.selector, self.coordinator = launch, selector, coordinator
        self.connections: List[Connection] = []
        self.by_node: Dict[int, Connection] = {}
        self.left: Set[int] = set()
        self.numbers: Dict[int, int] = {}
        self.beat_at = 0.0
        family, target = resolve(launch["master_addr"], launch["control_port"])
        everywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - here the name may mean loopback
        host = target[0] if target[0] in ("127.0.0.1", "::1") and all_here(launch) else everywhere
        self.server = socket.create_server((host, launch["control_port"]), family=family, backlog=1024)
        self.server.setblocking(False)
        selector.register(self.server, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _address = self.server.accept()
                connection = Connection(sock)
                self.connections.append(connection)
                self.selector.register(sock, selectors.EVENT_READ, partial(self._read, connection))
                connection.send({"nonce": connection.nonce})

    def _read(self, connection: Connection) -> None:
        for message in connection.receive():
            if connection.peer is None:
                self._authenticate(connection, message)
            else:
                self._dispatch(connection.peer, message)
        if connection.peer is not None:
            self.coordinator.heard(connection.peer, time.monotonic())
        self._sweep(connection)

    def _authenticate(self, connection: Connection, message: Json) -> None:
        token, rank = self.launch["token"], message.get("node_rank")
        expected = proof(token, "agent", connection.nonce)
        known = isinstance(rank, int) and rank in self.coordinator.active and rank != 0
        if (
            not same_proof(message.get("proof"), expected)
            or message.get("run_id") != self.launch["run_id"]
            or not known
        ):
            connection.closed = ConnectionAbortedError("refused")
            return
        connection.peer = rank
        old = self.by_node.get(int(message["node_rank"]))
        if old is not None:
            old.peer = None  # the agent itself replaced this connection: it is not dead
            old.closed = ConnectionAbortedError("replaced")
            self._sweep(old)
        self.by_node[int(message["node_rank"])] = connection
        connection.send({"proof": proof(token, "hub", str(message.get("nonce")))})
        self._dispatch(int(message["node_rank"]), message)

    def _dispatch(self, node_rank: int, message: Json) -> None:
        kind, number = message.get("say"), message.get("number")
        if number is not None:
            if number <= self.numbers.get(node_rank, 0):
                return  # repeated after a reconnect
            self.numbers[node_rank] = number
        if kind == "hello":
            self.coordinator.heard(node_rank, time.monotonic())
            self.coordinator.arrived(node_rank)
            self.coordinator.returned(node_rank)
        elif kind == "failing":
            self.coordinator.failing(node_rank, message["attempt"], message["failure"])
        elif kind == "ended":
            self.coordinator.reported(node_rank, message["attempt"], message["outcome"])
        elif kind == "quiet":
            self.coordinator.quiet(node_rank, message["attempt"], message["quiet"])
        elif kind == "stacks":
            self.coordinator.stacks(node_rank, message["attempt"], message["rows"])
        elif kind == "request":
            self.coordinator.request(message["request"])
        elif kind == "bye":
            self.left.add(node_rank)

    def _sweep(self, connection: Connection) -> None:
        if connection.closed is None or connection not in self.connections:
            return
        self.connections.remove(connection)
        self.selector.unregister(connection.sock)
        connection.sock.close()
        peer = connection.peer
        if peer is None or self.by_node.get(peer) is not connection:
            return
        del self.by_node[peer]
        if isinstance(connection.closed, (ConnectionResetError, BrokenPipeError)) and peer not in self.left:
            self.coordinator.disconnected(peer, time.monotonic())

    def send(self, node_rank: int, command: Json) -> None:
        connection = self.by_node.get(node_rank)
        if connection is not None:
            connection.send(command)

    def tick(self, now: float) -> None:
        for connection in list(self.connections):
            if connection.pending:
                connection.flush()
            if connection.peer is None and now - connection.heard > 10:
                connection.closed = ConnectionAbortedError("no proof within 10 s")
            self._sweep(connection)
        for rank in set(self.by_node) - set(self.coordinator.active):  # a node that comes back learns that it is lost
            self.by_node[rank].closed = ConnectionAbortedError("lost")
            self._sweep(self.by_node[rank])
        if now >= self.beat_at:
            self.beat_at = now + beat_of(self.launch)
            for connection in list(self.by_node.values()):
                connection.send({"do": "beat"})

    def all_left(self) -> bool:
        """Whether every agent has read the verdict or is lost."""
        return all(rank == 0 or rank in self.left for rank in self.coordinator.active)

    def close(self) -> None:
        for sock in [self.server] + [connection.sock for connection in self.connections]:
            self.selector.unregister(sock)
            sock.close()


def all_here(launch: Json) -> bool:
    return len({node["host"] for node in launch["nodes"]}) == 1

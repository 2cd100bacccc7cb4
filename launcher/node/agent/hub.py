"""Node 0's end of the control channel: accepts the other agents.

Whoever reaches the port may connect, so what a connection can cost is bounded until it has proved that it knows the
run's token: its bytes, its time, and the number of such connections.
"""

from __future__ import annotations

import errno
import resource
import selectors
import socket
import time
from contextlib import suppress
from functools import partial

from ..proofs import proof, same_proof
from .launch import beat_of
from .wire import REPORTS, Connection, fits, line_of, resolve

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Set, Tuple

    from ..files import Json
    from .coordinator import Coordinator


PROOF_SECONDS = 10.0
"""From the connection to the proof, however many bytes come meanwhile."""
UNPROVEN = 64
"""Connections without proof at a time, besides one for each node."""
OWN_FILES = 128
"""Descriptors that the agent itself needs."""
PAUSE = 1.0
"""Seconds without accepting, after the system had no descriptor or memory left."""


class Hub:
    """Accepts the other agents and hands their messages to the coordinator."""

    def __init__(self, launch: Json, selector: selectors.BaseSelector, coordinator: Coordinator) -> None:
        self.launch, self.selector, self.coordinator = launch, selector, coordinator
        self.connections: List[Connection] = []
        self.by_node: Dict[int, Connection] = {}
        self.left: Set[int] = set()
        self.numbers: Dict[int, int] = {}
        self.encoded: Optional[Tuple[Json, bytes]] = None
        """The newest command, and its line: the rank table of hundreds of nodes takes long to write for each."""
        self.beat_at = 0.0
        self.most_unproven = UNPROVEN + len(launch["nodes"])
        make_room(self.most_unproven + len(launch["nodes"]) + OWN_FILES)
        self.server = listen(launch)
        self.accept_again: Optional[float] = None
        """When to accept again; None: accepting."""
        selector.register(self.server, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self.server.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor or memory is left: the port stays readable, and asking again would not end
                self.selector.unregister(self.server)
                self.accept_again = time.monotonic() + PAUSE
                return
            connection = Connection(sock, str(address[0]))
            self.connections.append(connection)
            self.selector.register(sock, selectors.EVENT_READ, partial(self._read, connection))
            connection.send({"nonce": connection.nonce})
            self._bound_unproven()

    def _bound_unproven(self) -> None:
        """Close the oldest connection without proof of the address that has most of them, if there are too many."""
        unproven = [connection for connection in self.connections if not connection.trusted]
        if len(unproven) <= self.most_unproven:
            return
        by_source: Dict[str, List[Connection]] = {}
        for connection in unproven:
            by_source.setdefault(connection.source, []).append(connection)
        oldest = max(by_source.values(), key=len)[0]
        oldest.closed = ConnectionAbortedError("too many connections")
        self._sweep(oldest)

    def _read(self, connection: Connection) -> None:
        for message in connection.receive():
            if connection.closed is not None:
                break
            if connection.peer is None:
                self._authenticate(connection, message)
            elif fits(REPORTS, message.get("say"), message):
                self._dispatch(connection.peer, message)
            else:
                connection.closed = ConnectionAbortedError("not our protocol")
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
        self._dispatch(int(message["node_rank"]), {"say": "hello"})

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
        elif kind == "bye":
            self.left.add(node_rank)
        elif kind == "again":  # the agent lives, heard nothing for long, and connects anew when its host lets it
            self.by_node[node_rank].closed = ConnectionAbortedError("the agent connects anew")
        else:
            self.coordinator.report(node_rank, message)

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
            if self.encoded is None or self.encoded[0] is not command:  # one command goes to all nodes
                self.encoded = (command, line_of(command))
            connection.send_line(self.encoded[1])

    def tick(self, now: float) -> None:
        for connection in list(self.connections):
            if connection.pending:
                connection.flush()
            if not connection.trusted and now - connection.opened > PROOF_SECONDS:
                connection.closed = ConnectionAbortedError("no proof in time")
            self._sweep(connection)
        if self.accept_again is not None and now >= self.accept_again:
            self.accept_again = None
            self.selector.register(self.server, selectors.EVENT_READ, self._accept)
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
            with suppress(KeyError):  # it waits for a free descriptor
                self.selector.unregister(sock)
            sock.close()


def listen(launch: Json) -> socket.socket:
    """Listen at the address that the other nodes use. Raises OSError.

    A name may mean loopback on its own host, and an address may be another one outside of the host (NAT): then listen
    at all addresses.
    """
    address, port = launch["master_addr"], launch["control_port"]
    family, target = resolve(address, port)
    here = target[0] in ("127.0.0.1", "::1")
    hosts = ["::" if family == socket.AF_INET6 else "0.0.0.0"]  # noqa: S104 - the last resort
    if (here and all_here(launch)) or (not here and is_literal(address)):
        hosts.insert(0, target[0])
    for host in hosts:
        try:
            server = socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or host == hosts[-1]:
                raise
        else:
            server.setblocking(False)
            return server
    raise AssertionError("unreachable")


def is_literal(address: str) -> bool:
    """Whether it is an IP address rather than a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, address.partition("%")[0])
            return True
    return False


def make_room(descriptors: int) -> None:
    """Raise the soft limit of open descriptors if so many are more than it allows, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < descriptors:
        most = descriptors if hard == resource.RLIM_INFINITY else min(descriptors, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def all_here(launch: Json) -> bool:
    return len({node["host"] for node in launch["nodes"]}) == 1

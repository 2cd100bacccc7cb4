"""The network between hosts: ports of this host for the others to try, its addresses, and which peers it reaches."""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress

from ..addresses import ipv4_interfaces, ipv6_interfaces, is_link_local, stream_addresses
from .common import Refused
from .host import shared_dir_marks, ssh_address

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

    from ..files import Json

VIRTUAL = ("lo", "docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "podman", "lxc", "lxd", "kube")
"""Prefixes of interfaces whose addresses other hosts cannot reach."""
LISTENERS: List[socket.socket] = []


def listen(nonce: str, peers: Sequence[str], ports: Optional[Sequence[int]] = None, **_: Any) -> Json:
    """Open the run's two ports for a moment and answer every caller with the nonce. Returns ports and addresses."""
    opened = []
    for port in ports or candidate_ports():
        try:
            server = open_server(port)
        except OSError as error:
            if ports:
                raise Refused("port %d: %s" % (port, error.strerror)) from error
            continue
        serve_nonce(server, nonce)
        opened.append(port)
        if len(opened) == 2:
            return {"ports": opened, "addresses": own_addresses(peers)}
    raise Refused("no two free ports between 10000 and 29999")


def open_server(port: int) -> socket.socket:
    """Listen at all addresses, of IPv4 and of IPv6. Raises OSError."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=512, dualstack_ipv6=both)


def candidate_ports() -> Iterator[int]:
    """Ports below the range of outgoing connections. They are 32 apart: restarts count up from the first port."""
    for _ in range(200):
        yield 10000 + 32 * (int.from_bytes(os.urandom(4), "big") % 625)


def serve_nonce(server: socket.socket, nonce: str) -> None:
    """Answer every caller in a thread, until `unlisten`."""
    import threading

    def answer() -> None:
        while True:
            try:
                caller, _address = server.accept()
            except OSError:
                return
            with suppress(OSError):
                caller.sendall(nonce.encode())
            caller.close()

    LISTENERS.append(server)
    threading.Thread(target=answer, daemon=True).start()


def unlisten(**_: Any) -> Json:
    """Close the ports again. The shutdown wakes the accepting thread, which would hold the port until then."""
    for server in LISTENERS:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
    del LISTENERS[:]
    return {}


def own_addresses(peers: Sequence[str]) -> List[str]:
    """This host's addresses, the likely ones first: towards the peers, where SSH came in, then of real interfaces."""
    found = [*(address_towards(peer) for peer in peers), ssh_address()]
    virtual: Set[str] = set()
    for name, address in ipv4_interfaces() + ipv6_interfaces():
        (virtual.add if name.startswith(VIRTUAL) else found.append)(address)
    real = [a for a in found if a and a not in virtual and not a.startswith("127.") and a != "::1"]
    # A link-local address leads somewhere only where the interface has the same name: it is for want of another.
    real = [a for a in real if not is_link_local(a)] or real
    # Loopback comes last: only runs whose hosts are all this machine can use it.
    return list(dict.fromkeys([*real, "127.0.0.1"]))


def address_towards(peer: str) -> str:
    """The address from which packets to the peer leave, as `ip route get` tells; empty: there is no route."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((peer, 9))  # sends nothing: the kernel only picks the route
        return str(sock.getsockname()[0])
    return ""


def probe_peers(workdir: str, token: str, targets: Sequence[Any], seconds: float, **_: Any) -> Json:
    """What this host sees of the others, in one answer: `seen` (shared_dir_marks) and `reached` (reach)."""
    return {**shared_dir_marks(workdir, token), **reach(targets, seconds)}


def reach(targets: Sequence[Any], seconds: float, **_: Any) -> Json:
    """For each [address, port, nonce], whether the host with this nonce answers there within `seconds`.

    The nonce tells hosts apart: the address of a docker bridge leads somewhere on every machine, but to itself.
    """
    if not targets:
        return {"reached": []}
    waiting = connect_all(targets)
    reached = [False] * len(targets)
    poll = select.poll()
    for number in waiting:
        poll.register(number, select.POLLIN)
    end = time.monotonic() + seconds
    while waiting and time.monotonic() < end:
        for number, _event in poll.poll(1000 * max(0.0, end - time.monotonic())):
            index, sock = waiting.pop(number)
            poll.unregister(number)
            with suppress(OSError):
                reached[index] = sock.recv(256).decode("ascii", "replace") == targets[index][2]
            sock.close()
    for _index, sock in waiting.values():
        sock.close()
    return {"reached": reached}


def connect_all(targets: Sequence[Any]) -> Dict[int, Tuple[int, socket.socket]]:
    """{descriptor: (index of the target, socket)} of connections that are being made."""
    waiting: Dict[int, Tuple[int, socket.socket]] = {}
    for index, (address, port, _nonce) in enumerate(targets):
        with suppress(OSError):  # no such name, or no such address family here
            family, kind, _protocol, _name, target = stream_addresses(address, port)[0]
            sock = socket.socket(family, kind)
            sock.setblocking(False)
            sock.connect_ex(target)  # an error comes with the first read
            waiting[sock.fileno()] = (index, sock)
    return waiting

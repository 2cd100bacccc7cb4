"""Names and addresses of hosts, as sockets want them."""

from __future__ import annotations

import socket
from contextlib import suppress

from .files import read_text

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, List, Tuple

SIOCGIFADDR = 0x8915


def stream_addresses(host: str, port: int) -> Any:
    """socket.getaddrinfo for a TCP service. Bytes spare an ASCII name the codec of other names, which is large."""
    return socket.getaddrinfo(host.encode() if host.isascii() else host, port, type=socket.SOCK_STREAM)


def interface_of(address: str) -> str:
    """The interface of this host with the address; empty for a loopback address, and if no interface has it."""
    plain = address.partition("%")[0].replace("::ffff:", "")  # an IPv4 caller of a socket for IPv6
    if not plain or plain.startswith("127.") or plain == "::1":
        return ""
    if ":" in plain:
        plain = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, plain))
    found = ipv6_interfaces() if ":" in plain else ipv4_interfaces()
    return next((name for name, own in found if own.partition("%")[0] == plain), "")


def ipv4_interfaces() -> List[Tuple[str, str]]:
    """(interface, IPv4 address) pairs, by the ioctl that `ifconfig` uses."""
    import fcntl
    import struct

    pairs = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(sock, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                pairs.append((name, socket.inet_ntoa(answer[20:24])))
    return pairs


def ipv6_interfaces() -> List[Tuple[str, str]]:
    """(interface, IPv6 address) pairs; a link-local address has its interface behind `%`, without which it is none."""
    pairs = []
    for fields in map(str.split, read_text("/proc/net/if_inet6").splitlines()):
        address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[0]))
        pairs.append((fields[-1], "%s%%%s" % (address, fields[-1]) if is_link_local(address) else address))
    return pairs


def is_link_local(address: str) -> bool:
    return address.lower().startswith(("fe8", "fe9", "fea", "feb"))

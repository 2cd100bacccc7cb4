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
        return _interface_of_ipv6(socket.inet_pton(socket.AF_INET6, plain).hex())
    return next((name for name, own in ipv4_interfaces() if own == plain), "")


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


def _interface_of_ipv6(digits: str) -> str:
    for line in read_text("/proc/net/if_inet6").splitlines():
        fields = line.split()
        if fields and fields[0] == digits:
            return fields[-1]
    return ""

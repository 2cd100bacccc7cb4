"""Names and addresses of hosts, as sockets want them."""

from __future__ import annotations

import socket

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any


def stream_addresses(host: str, port: int) -> Any:
    """socket.getaddrinfo for a TCP service. Bytes spare an ASCII name the codec of other names, which is large."""
    return socket.getaddrinfo(host.encode() if host.isascii() else host, port, type=socket.SOCK_STREAM)

"""The parts in C of modules whose other parts every host would import for nothing: sockets, signals, a keyed hash.

They are what the public modules themselves are made of; where a Python has them not, the public ones serve.
"""

from __future__ import annotations

from .lightjson import dumps, loads

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    import signal
    import socket
    from typing import Any
else:
    try:
        import _signal as signal  # without enum: signals are plain numbers
        import _socket as socket
    except ImportError:
        import signal
        import socket
try:  # without OpenSSL, which hashlib and hmac load
    from _blake2 import blake2b
    from _operator import _compare_digest as compare_digest
except ImportError:
    from hashlib import blake2b
    from hmac import compare_digest  # type: ignore[no-redef] # the same function

__all__ = ["address_info", "blake2b", "compare_digest", "dumps", "loads", "prctl", "signal", "socket"]


def address_info(host: str, port: int) -> Any:
    """socket.getaddrinfo of a TCP service; of a name in ASCII without loading the codec for other names."""
    return socket.getaddrinfo(host.encode() if host.isascii() else host, port, 0, socket.SOCK_STREAM)


def prctl(option: int, value: int) -> None:
    """prctl(2), as ctypes calls it."""
    try:
        import _ctypes

        class Int(_ctypes._SimpleCData):  # type: ignore[type-arg] # generic for the type checker only
            _type_ = "i"

        class Function(_ctypes.CFuncPtr):
            _flags_ = _ctypes.FUNCFLAG_CDECL
            _restype_ = Int

        function = Function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl"))  # type: ignore[arg-type] # this program
    except (ImportError, AttributeError, TypeError):
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    else:
        function(option, value, 0, 0, 0)

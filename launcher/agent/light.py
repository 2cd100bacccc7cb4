"""The parts in C of modules whose other parts every host would import for nothing: sockets, a keyed hash, prctl.

They are what the public modules themselves are made of; where a Python has them not, the public ones serve.
"""

from __future__ import annotations

try:  # without OpenSSL, which hashlib and hmac load
    from _blake2 import blake2b
    from _operator import _compare_digest as compare_digest
except ImportError:
    from hashlib import blake2b
    from hmac import compare_digest  # type: ignore[no-redef] # the same function
try:
    import _socket as socket
except ImportError:
    import socket  # type: ignore[no-redef]

__all__ = ["blake2b", "compare_digest", "prctl", "socket"]


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

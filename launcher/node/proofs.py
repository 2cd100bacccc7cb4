"""How agents of a run prove to each other that they know its token, without sending it.

hmac and hashlib load OpenSSL, a quarter of an agent's start. The two functions are in Python's own C modules too; a
Python without those modules takes the public ones.
"""

from __future__ import annotations

try:
    from _blake2 import blake2b
    from _operator import _compare_digest as compare_digest
except ImportError:
    from hashlib import blake2b
    from hmac import compare_digest  # type: ignore[no-redef] # the same function

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any


def proof(token: str, role: str, nonce: str) -> str:
    """Answer a challenge: proves knowledge of the token without sending it. The role prevents a mirrored answer."""
    challenge = ("%s:%s" % (role, nonce)).encode("utf-8", "replace")
    key = blake2b(token.encode()).digest()  # a key has 64 bytes at most, and a user's own token may be longer
    return blake2b(challenge, key=key, digest_size=32).hexdigest()


def same_proof(left: Any, right: str) -> bool:
    """Compare in a time that does not depend on where they differ."""
    return isinstance(left, str) and bool(compare_digest(left.encode("utf-8", "replace"), right.encode()))

"""How agents of a run prove to each other that they know its token, without sending it."""

from __future__ import annotations

import hmac

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any


def proof(token: str, role: str, nonce: str) -> str:
    """Answer a challenge: proves knowledge of the token without sending it. The role prevents a mirrored answer."""
    challenge = ("%s:%s" % (role, nonce)).encode("utf-8", "replace")
    return hmac.digest(token.encode(), challenge, "sha256").hex()


def same_proof(left: Any, right: str) -> bool:
    return isinstance(left, str) and bool(hmac.compare_digest(left.encode("utf-8", "replace"), right.encode()))

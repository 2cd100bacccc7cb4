"""What the operations of all subjects share: how they refuse, and the limits of one answer."""

from __future__ import annotations

CHUNK = 1 << 20
"""Most bytes of one file in one answer."""
ANSWER = 4 << 20
"""About the most bytes in one answer."""


class Refused(Exception):
    """The operation has no result; the message says why."""

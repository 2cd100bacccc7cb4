"""What the operations of all subjects share: how they refuse, and the limits of one answer."""

from __future__ import annotations

CHUNK = 1 << 20
"""Most bytes of one file in one answer."""
ANSWER = 4 << 20
"""About the most bytes in one answer."""
TEXT = 16384
"""Most characters of a text in an answer. The launcher refuses longer ones (launcher/remote/host_answers.py)."""
MOST_FILES = 20_000
"""Most files in one answer."""


class Refused(Exception):
    """The operation has no result; the message says why."""

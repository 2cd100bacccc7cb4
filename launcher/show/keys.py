"""Single keys of the terminal, without Enter and without an echo."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from typing import Any


class Keys:
    """Reads keys while the context lasts. Without a terminal as standard input there are none."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Keys:
        try:
            self._handle = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._handle)
            # The process may be in the background: then the change would stop it.
            if os.getpgrp() != os.tcgetpgrp(self._handle):
                self._before = None
                return self
            tty.setcbreak(self._handle)
        except (OSError, ValueError, AttributeError, termios.error):
            self._before = None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            try:
                termios.tcsetattr(self._handle, termios.TCSADRAIN, self._before)
            except (OSError, termios.error):  # the terminal is gone
                return

    @property
    def are_there(self) -> bool:
        return self._before is not None

    def read(self, seconds: float) -> str:
        """The key pressed within this time; empty: none. Raises EOFError if the terminal is gone."""
        if self._before is None or not select.select([self._handle], [], [], seconds)[0]:
            return ""
        try:
            data = os.read(self._handle, 64)
        except OSError:
            data = b""
        if not data:
            raise EOFError
        return data.decode("utf-8", "replace")[:1]

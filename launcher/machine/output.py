"""Standard output and error that no encoding, full pipe or closed terminal turns into a traceback."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any


class OutputError(OSError):
    """Standard output cannot be written, for example on a full disk."""


class _Stream(io.FileIO):
    optional = False
    """Whether what runs matters more than its output: a failed write is then no error."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe that does not block
                select.select([], [self], [], 1.0)
        except BrokenPipeError:
            if not _Stream.optional:
                raise
        except OSError as error:
            if error.errno != errno.EIO and not _Stream.optional:  # EIO: the terminal is gone
                raise OutputError(error.errno, error.strerror) from error
        else:
            return written
        return len(data)


def protect() -> None:
    """Replace sys.stdout and sys.stderr, keeping their encodings. Characters that these lack are escaped."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # started with a closed stream (`>&-`): the next file opened would take its place
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        binary = io.BufferedWriter(_Stream(number, "w", closefd=False))
        stream = io.TextIOWrapper(
            binary,
            encoding=old.encoding if old is not None else "utf-8",
            errors="backslashreplace",
            line_buffering=number == 2 or os.isatty(number),
            write_through=bool(old is not None and old.write_through),
        )
        setattr(sys, name, stream)


def make_optional() -> None:
    """Go on without output from now on where it cannot be written: a run matters more than what is shown of it."""
    _Stream.optional = True


def child_encoding() -> str:
    """PYTHONIOENCODING for a child that writes to the same place."""
    return f"{getattr(sys.stdout, 'encoding', None) or 'utf-8'}:backslashreplace"

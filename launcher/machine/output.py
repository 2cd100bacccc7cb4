"""Standard output and error that no encoding, full pipe or closed terminal turns into a traceback.

This is the edge where text is printed. Logs, messages, names and numbers come from hosts, models and data: no control
sequence in them reaches a terminal. Only rich's own sequences do (launcher/show/terminal.py).
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import select
import sys
from typing import IO, Any

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb]")
"""What a terminal obeys instead of showing it: C0 but for tab and line feed, C1, marks that turn the direction of text,
and line ends that only some programs know. train/errors.py has the same."""
_PARTS = tuple(
    re.compile(part)
    for part in (
        rb"\xc2[\x80-\x9f]",
        rb"\xd8\x9c",
        rb"\xe2\x80[\x8e\x8f\xa8-\xae]",
        rb"\xe2\x81[\xa6-\xa9]",
        rb"\xef\xbf[\xb9-\xbb]",
    )
)
"""The same in UTF-8, where it is more than one byte."""
_FIRST = b"\xc2\xd8\xe2\xef"
"""With what these begin."""
_PLAIN = bytes(byte for byte in range(256) if (byte >= 0x20 or byte in b"\t\n") and byte != 0x7F and byte not in _FIRST)


def has_control(raw: bytes) -> bool:
    """Whether UTF-8 holds a character of CONTROL.

    One regular expression would find them at 0.1 GB/s, which would hold up large logs; this takes 0.5 to 4 GB/s.
    """
    left = raw.translate(None, _PLAIN)
    return bool(left) and (bool(left.translate(None, _FIRST)) or any(part.search(raw) for part in _PARTS))


def printable(text: str) -> str:
    """Write control characters as `\\u001b`, which in a JSON string still means the character."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


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


class _Guarded(io.BufferedWriter):
    """Bytes on their way out, of text in `encoding`. Control characters become text."""

    encoding = "utf-8"

    def write(self, data: Any) -> int:
        raw = bytes(data)
        if self.encoding != "utf-8" or has_control(raw):
            text = printable(raw.decode(self.encoding, "backslashreplace"))
            super().write(text.encode(self.encoding, "backslashreplace"))
        else:
            super().write(raw)
        return len(raw)

    def write_styled(self, data: bytes) -> None:
        """Write the sequences of our own display."""
        super().write(data)


class Styled:
    """A stream as rich's file: what rich writes is its own display around text that is clean."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        buffer = getattr(self._stream, "buffer", None)
        if not isinstance(buffer, _Guarded):  # a stream of a test, or of a program that imports us
            return self._stream.write(text)
        self._stream.flush()
        buffer.write_styled(text.encode(buffer.encoding, "backslashreplace"))
        return len(text)


def protect() -> None:
    """Replace sys.stdout and sys.stderr, keeping their encodings. Characters that these lack are escaped."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # started with a closed stream (`>&-`): the next file opened would take its place
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        binary = _Guarded(_Stream(number, "w", closefd=False))
        encoding = codecs.lookup(old.encoding).name if old is not None else "utf-8"
        if encoding != "ascii":  # Click writes UTF-8 there, which has ASCII in it
            binary.encoding = encoding
        stream = io.TextIOWrapper(
            binary,
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=number == 2 or os.isatty(number),
            write_through=bool(old is not None and old.write_through),
        )
        setattr(sys, name, stream)


def make_optional() -> None:
    """Go on without output from now on where it cannot be written: a run matters more than what is shown of it."""
    _Stream.optional = True


def error_descriptor() -> int | None:
    """Of standard error; None where that is no open file (closed, or replaced by a program that imports us)."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def child_encoding() -> str:
    """PYTHONIOENCODING for a child that writes to the same place."""
    return f"{getattr(sys.stdout, 'encoding', None) or 'utf-8'}:backslashreplace"

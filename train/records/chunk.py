"""A chunk of a data file: the part that one process reads on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from train.records.encoding import UTF8_BOM

CHUNK_BYTES = 2 << 20
CHUNK_ROWS = 5000
LARGEST_OBJECT = 64 << 20
"""Bytes of one object of a JSON list or one cell of a table. Beyond this size the file is considered broken."""


class Broken(NamedTuple):
    """Stands in for a record that cannot be decoded; `text` says why."""

    text: str


@dataclass(frozen=True)
class Chunk:
    kind: str
    path: str
    shown: str
    """The file's name in messages."""
    start: int
    """Offset in bytes for text files, in rows (from 0) for tables; likewise `end`."""
    end: int
    line: int
    """Number of the first line or row, from 1."""
    columns: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    """Columns of a table, or keys beside the list of a wrapper, that hold nothing for a record and are not decoded."""
    delimiter: str = ","
    wrapper: str = ""
    """Key of the list that the records are in, if the file is one object around them."""
    broken: str = ""
    """Set if the file could not be cut here: the chunk's only object is a Broken with this text."""

    def read_bytes(self) -> bytes:
        """The bytes of a chunk of a text file, without the byte order mark."""
        with Path(self.path).open("rb") as file:
            file.seek(self.start)
            raw = file.read(self.end - self.start)
        return raw.removeprefix(UTF8_BOM) if self.start == 0 else raw


Objects = Iterator[tuple[int, Any]]
"""(line or row, decoded object or Broken) pairs."""


@dataclass(frozen=True)
class Reader:
    """How one kind of file is cut into chunks, and how a chunk is read."""

    cut: Callable[[str, str], Iterator[Chunk]]
    """(path, name in messages) -> chunks in order."""
    read: Callable[[Chunk], Objects]

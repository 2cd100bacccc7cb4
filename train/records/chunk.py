"""A chunk of a data file: the part that one worker reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

CHUNK_BYTES = 2 << 20


CHUNK_ROWS = 5000


LARGEST_OBJECT = 64 << 20
"""Bytes of one object of a JSON list; beyond it the list is taken to be broken."""


BOM = b"\xef\xbb\xbf"


class Broken(NamedTuple):
    """Something that stands where a record should, and why it is none."""

    text: str


@dataclass(frozen=True)
class Chunk:
    kind: str
    path: str
    shown: str
    """What messages call the file."""
    start: int
    """Bytes of text files, rows of tables (from 0); likewise `end`."""
    end: int
    line: int
    """Number of the first line or row, from 1."""
    columns: tuple[str, ...] = ()
    broken: str = ""
    """The chunk could not even be cut: its only object is a Broken with this text."""


Pairs = Iterator[tuple[int, Any]]


@dataclass(frozen=True)
class Kind:
    cut: Callable[[str, str], Iterator[Chunk]]
    read: Callable[[Chunk], Pairs]


def bytes_of(chunk: Chunk) -> bytes:
    with Path(chunk.path).open("rb") as file:
        file.seek(chunk.start)
        raw = file.read(chunk.end - chunk.start)
    return raw.removeprefix(BOM) if chunk.start == 0 else raw


def encoding_of(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}); {SAVE.format('GB18030')}"


SAVE = "save the file as UTF-8 (iconv -f {} -t UTF-8 OLD > NEW)"


def whole_text(value: Any) -> Any:
    """A decoded object, or a Broken: JSON can name half of a surrogate pair ("\\ud83d", an emoji cut in two), and no
    tokenizer takes it for a text."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        return Broken(f"holds half of a character (\\u{ord(half):04x} without its other half)")
    return value


def bad_json(error: json.JSONDecodeError) -> str:
    return f"bad JSON: {error.msg} (column {error.colno})"

"""Read JSON lists and JSON lines in chunks."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from train.records.chunk import (
    BOM,
    CHUNK_BYTES,
    LARGEST_OBJECT,
    Broken,
    Chunk,
    Pairs,
    bad_json,
    bytes_of,
    encoding_of,
    whole_text,
)


def cut_lines(path: str, shown: str) -> Iterator[Chunk]:
    with Path(path).open("rb") as file:
        start, line = 0, 1
        while block := file.read(CHUNK_BYTES):
            block += file.readline()
            end = start + len(block)
            yield Chunk("lines", path, shown, start, end, line)
            start, line = end, line + block.count(b"\n")


def read_lines(chunk: Chunk) -> Pairs:
    decode = msgspec.json.decode
    for number, raw in enumerate(bytes_of(chunk).split(b"\n"), chunk.line):
        try:
            yield number, decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if raw.strip():
                yield number, _decode_slowly(raw)


def _decode_slowly(raw: bytes) -> Any:
    """What the fast decoder refuses, with a message that names the column; the standard one takes NaN and the like."""
    try:
        return whole_text(json.loads(raw.decode("utf-8")))
    except UnicodeDecodeError as error:
        return Broken(encoding_of(error))
    except json.JSONDecodeError as error:
        return Broken(bad_json(error))
    except RecursionError:
        return Broken("bad JSON: nested too deeply")


def cut_json(path: str, shown: str) -> Iterator[Chunk]:
    """A list is decoded object by object, to know where to cut; anything else is taken for JSON lines."""
    with Path(path).open("rb") as file:
        head = file.read(4096).removeprefix(BOM).lstrip()
    if not head.startswith(b"["):
        yield from cut_lines(path, shown)
        return
    first = None
    end = 0
    for item in _ListReader(path, 0, 1, inside=False):
        if isinstance(item.value, Broken):
            if first is not None:
                yield Chunk("list", path, shown, first[0], end, first[1])
            yield Chunk("list", path, shown, end, end, item.line, broken=item.value.text)
            return
        first = first or (item.start, item.line)
        end = item.end
        if end - first[0] >= CHUNK_BYTES:
            yield Chunk("list", path, shown, first[0], end, first[1])
            first = None
    if first is not None:
        yield Chunk("list", path, shown, first[0], end, first[1])


def read_list(chunk: Chunk) -> Pairs:
    for item in _ListReader(chunk.path, chunk.start, chunk.line, inside=True, stop=chunk.end):
        yield item.line, item.value


class _Item(NamedTuple):
    line: int
    start: int
    end: int
    """Bytes of the file."""
    value: Any


class _ListReader:
    """The objects of a JSON list from a byte on, through a window that slides over the file."""

    def __init__(self, path: str, start: int, line: int, *, inside: bool, stop: int | None = None) -> None:
        self.path, self.start, self.line, self.inside, self.stop = path, start, line, inside, stop

    def __iter__(self) -> Iterator[_Item]:
        decoder = json.JSONDecoder()
        utf8 = codecs.getincrementaldecoder("utf-8")()
        with Path(self.path).open("rb") as file:
            file.seek(self.start)
            text, place, line = "", 0, self.line
            byte = self.start
            """Of the file, where text[place] stands."""
            left = None if self.stop is None else self.stop - self.start
            ended = False
            inside = self.inside

            def more() -> None:
                nonlocal text, place, ended, left
                block = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
                left = None if left is None else left - len(block)
                ended = not block
                text, place = text[place:] + utf8.decode(block, final=ended), 0

            def advance(to: int) -> None:
                nonlocal place, byte, line
                passed = text[place:to]
                byte, line, place = byte + len(passed.encode()), line + passed.count("\n"), to

            try:
                more()
                while True:
                    to = place
                    while to < len(text) and text[to] in " \t\r\n,\ufeff":
                        to += 1
                    advance(to)
                    if to == len(text):
                        if not ended:
                            more()
                        elif self.stop is None:
                            yield _Item(line, byte, byte, Broken("bad JSON: the list is not closed"))
                            return
                        else:
                            return
                        continue
                    if not inside:  # at the bracket that opens the list
                        advance(to + 1)
                        inside = True
                        continue
                    if text[to] == "]":
                        return
                    try:
                        value, end = decoder.raw_decode(text, to)
                    except json.JSONDecodeError as error:
                        if not ended and len(text) - to < LARGEST_OBJECT:
                            more()
                            continue
                        where = line + text.count("\n", place, error.pos)
                        yield _Item(where, byte, byte, Broken(bad_json(error)))
                        return
                    if end == len(text) and not ended and text[end - 1] not in "}]":  # a number may go on
                        more()
                        continue
                    first, started = line, byte
                    escaped = text.find("\\u", to, end) >= 0
                    advance(end)
                    yield _Item(first, started, byte, whole_text(value) if escaped else value)
            except UnicodeDecodeError as error:
                where = line + text.count("\n", place) + error.object[: error.start].count(b"\n")
                yield _Item(where, byte, byte, Broken(encoding_of(error)))

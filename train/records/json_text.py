"""Read JSON lines and JSON lists in chunks.

A list is cut into chunks too, so it may be larger than memory. Streaming parsers such as ijson report neither the
byte offset nor the line of an item, replace half of a surrogate pair without an error, and refuse NaN and long
integers; so the list is decoded object by object here, through a window that slides over the file.
"""

from __future__ import annotations

import codecs
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from train.records.chunk import CHUNK_BYTES, LARGEST_OBJECT, Broken, Chunk, Objects
from train.records.encoding import UTF8_BOM, describe_encoding_error, lone_surrogate
from train.records.formats import KEYS
from train.records.turns import LOSS_KEYS


def cut_lines(path: str, shown: str, kind: str = "lines", size: int | None = None) -> Iterator[Chunk]:
    """Parts of whole lines, each of about `size` bytes (None: CHUNK_BYTES)."""
    with Path(path).open("rb") as file:
        start, line = 0, 1
        while block := file.read(size or CHUNK_BYTES):
            block += file.readline()
            end = start + len(block)
            yield Chunk(kind, path, shown, start, end, line)
            start, line = end, line + block.count(b"\n")


def read_lines(chunk: Chunk) -> Objects:
    decode = msgspec.json.decode
    for number, raw in enumerate(chunk.read_bytes().split(b"\n"), chunk.line):
        try:
            yield number, decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if raw.strip():
                yield number, _decode_slowly(raw)


def _decode_slowly(raw: bytes) -> Any:
    """Decode what msgspec refuses: json accepts NaN and its like, and its errors name the column."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Broken(describe_encoding_error(error))
    except (ValueError, RecursionError) as error:
        return Broken(_describe_json_error(error))
    half = lone_surrogate(value)
    return Broken(half) if half else value


def _describe_json_error(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"bad JSON: {error.msg} (column {error.colno})"
    if isinstance(error, RecursionError):
        return "bad JSON: nested too deeply"
    return f"bad JSON: {error}"  # an integer of thousands of digits


def cut_json(path: str, shown: str) -> Iterator[Chunk]:
    """Cut lines of JSON, a list, or objects over several lines. Only lines can be cut without decoding them."""
    with Path(path).open("rb") as file:
        first_line = file.readline(LARGEST_OBJECT).removeprefix(UTF8_BOM).strip()
        while not first_line and (line := file.readline(LARGEST_OBJECT)):
            first_line = line.strip()
        more = bool(file.read(4096).strip())
    is_list = first_line.startswith(b"[") and not (more and _is_json(first_line))  # else each line may be a list
    is_printed = first_line.startswith(b"{") and first_line.endswith((b"{", b"[", b",", b":"))
    wrapper = _find_wrapper(path) if is_printed or (first_line.startswith(b"{") and not more) else None
    if not is_list and not is_printed and not wrapper:
        yield from cut_lines(path, shown)
        return
    key, beside = (wrapper.key, wrapper.beside) if wrapper else ("", ())
    part = functools.partial(Chunk, "list", path, shown, unread=beside, wrapper=key)
    first: _Item | None = None  # of the chunk that is being filled
    end = 0
    for item in _wrapped(path, wrapper) if wrapper else _items(path):
        if isinstance(item.value, Broken):
            if first:
                yield part(first.start, end, first.line)
            yield Chunk("list", path, shown, end, end, item.line, broken=item.value.text + _lost(path, item.end))
            return
        first = first or item
        end = item.end
        if end - first.start >= CHUNK_BYTES:
            yield part(first.start, end, first.line)
            first = None
    if first:
        yield part(first.start, end, first.line)


def _lost(path: str, end: int) -> str:
    return "; the rest of the file is not read" if end < Path(path).stat().st_size else ""


def read_list(chunk: Chunk) -> Objects:
    for item in _items(chunk.path, chunk.start, chunk.end, chunk.line):
        yield item.line, item.value


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


class _Member(NamedTuple):
    """A key of the object that a file consists of."""

    key: str
    start: int
    """Byte offset of the value."""
    line: int
    holds_records: bool
    is_empty: bool


class _Wrapper(NamedTuple):
    """An object around the list of records, as in {"version": 1, "data": [...]}."""

    key: str
    start: int
    line: int
    beside: tuple[str, ...]
    """The other keys with a value."""
    others: tuple[str, ...]
    """Other keys with a list of records."""


def _find_wrapper(path: str) -> _Wrapper | None:
    """The list of records in a file's only object, unless the object is a record itself."""
    with Path(path).open("rb") as file:
        window = _Window(file, 0, None, 1)
        try:
            members = list(_members(window))
            is_whole = window.skip(_BLANKS) and window.text[window.place] == "}"
            window.advance(window.place + 1)
            if not is_whole or window.skip(_BLANKS):
                return None
        except (_NotJson, UnicodeDecodeError):
            return None
    lists = [member for member in members if member.holds_records]
    if not lists or any(member.key in KEYS and member.key not in LOSS_KEYS for member in members):
        return None
    key, start, line, *_ = lists[0]
    beside = tuple(member.key for member in members if not member.is_empty and member.key != key)
    return _Wrapper(key, start, line, beside, tuple(member.key for member in lists[1:]))


class _NotJson(Exception):
    pass


def _members(window: _Window) -> Iterator[_Member]:
    """The members of an object, read value by value. Raises _NotJson."""
    while window.skip(_BLANKS) and window.text[window.place] in "{,":
        window.advance(window.place + 1)
        if not window.skip(_BLANKS) or window.text[window.place] != '"':
            raise _NotJson
        key = str(_next_item(window).value)
        if not window.skip(_BLANKS) or window.text[window.place] != ":":
            raise _NotJson
        window.advance(window.place + 1)
        if not window.skip(_BLANKS):
            raise _NotJson
        start, line = window.byte, window.line
        if window.text[window.place] == "[":
            first = None
            for number, item in enumerate(_listed(window)):
                if isinstance(item.value, Broken):
                    raise _NotJson
                first = item.value if number == 0 else first
            yield _Member(key, start, line, _is_record(first), first is None)
            continue
        value = _next_item(window).value
        if isinstance(value, Broken):
            raise _NotJson
        yield _Member(key, start, line, False, value in (None, "", {}))


def _listed(window: _Window) -> Iterator[_Item]:
    """The items of the list that begins at the window's place. Ends with a Broken where the text is not JSON."""
    window.advance(window.place + 1)
    while window.skip(_BLANKS + ","):
        if window.text[window.place] == "]":
            window.advance(window.place + 1)
            return
        item = _next_item(window)
        yield item
        if isinstance(item.value, Broken):
            return
    yield window.broken("bad JSON: the list is not closed")


def _is_record(value: Any) -> bool:
    """Whether an item of a list is a record, and not a turn of one."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, dict) and {"role", "from"}.isdisjoint(value)


def _wrapped(path: str, wrapper: _Wrapper) -> Iterator[_Item]:
    with Path(path).open("rb") as file:
        window = _Window(file, wrapper.start, None, wrapper.line)
        if wrapper.others:
            names = ", ".join(map(repr, (wrapper.key, *wrapper.others)))
            yield window.broken(f"there are records in the lists under {names}: save one of these lists alone")
        elif window.skip(_BLANKS):
            yield from _listed(window)


class _Item(NamedTuple):
    """One object of a list; `start` and `end` are byte offsets in the file."""

    line: int
    start: int
    end: int
    value: Any


_BLANKS = " \t\r\n\ufeff"
_DECODER = json.JSONDecoder()


def _items(path: str, start: int = 0, stop: int | None = None, line: int = 1) -> Iterator[_Item]:
    """The objects of a list or of a file: all, or those between the byte offsets `start` and `stop` of a chunk.

    Ends with a Broken where the text is not JSON.
    """
    with Path(path).open("rb") as file:
        window = _Window(file, start, stop, line)
        try:
            if stop is None and window.skip(_BLANKS) and window.text[window.place] == "[":
                item = None
                for item in _listed(window):
                    yield item
                if not (item and isinstance(item.value, Broken)) and window.skip(_BLANKS):
                    yield window.broken("bad JSON: text after the end of the list")
                return
            while window.skip(_BLANKS + ","):
                item = _next_item(window)
                yield item
                if isinstance(item.value, Broken):
                    return
        except UnicodeDecodeError as error:  # all before it has been read
            yield window.broken(describe_encoding_error(error), window.text.count("\n", window.place))


def _next_item(window: _Window) -> _Item:
    """The object that begins at the window's place, or a Broken."""
    while True:
        try:
            value, end = _DECODER.raw_decode(window.text, window.place)
        except json.JSONDecodeError as error:
            if window.ended or len(window.text) - window.place >= LARGEST_OBJECT:
                lines = window.text.count("\n", window.place, error.pos)
                return window.broken(_describe_json_error(error), lines)
        except (ValueError, RecursionError) as error:
            return window.broken(_describe_json_error(error))
        else:
            # A number at the end of the window may go on behind it.
            if end < len(window.text) or window.ended or window.text[end - 1] in "}]":
                break
        window.read_more()
    line, start = window.line, window.byte
    half = lone_surrogate(value) if window.text.find("\\u", window.place, end) >= 0 else None
    window.advance(end)
    return _Item(line, start, window.byte, Broken(half) if half else value)


class _Window:
    """A part of a file as text. It knows the byte offset and the line of its `place`, the first unread character."""

    def __init__(self, file: BinaryIO, start: int, stop: int | None, line: int) -> None:
        file.seek(start)
        self.text, self.place = "", 0
        self.byte, self.line = start, line
        self.ended = False
        self._file = file
        self._left = None if stop is None else stop - start
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._torn: UnicodeDecodeError | None = None

    def read_more(self) -> None:
        """Drop what was read and append the next block, up to what is not UTF-8; then raise UnicodeDecodeError."""
        if self._torn:
            raise self._torn
        block = self._file.read(CHUNK_BYTES if self._left is None else min(CHUNK_BYTES, self._left))
        if self._left is not None:
            self._left -= len(block)
        self.ended = not block
        try:
            more = self._utf8.decode(block, final=self.ended)
        except UnicodeDecodeError as error:
            self._torn, more = error, error.object[: error.start].decode()
        self.text, self.place = self.text[self.place :] + more, 0

    def advance(self, place: int) -> None:
        passed = self.text[self.place : place]
        self.byte += len(passed.encode())
        self.line += passed.count("\n")
        self.place = place

    def skip(self, characters: str) -> bool:
        """Advance beyond any of these characters. False at the end of the file."""
        while True:
            place = self.place
            while place < len(self.text) and self.text[place] in characters:
                place += 1
            self.advance(place)
            if place < len(self.text):
                return True
            if self.ended:
                return False
            self.read_more()

    def broken(self, text: str, lines: int = 0) -> _Item:
        """A Broken this many lines behind the window's place."""
        return _Item(self.line + lines, self.byte, self.byte, Broken(text))

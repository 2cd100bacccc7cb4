"""Files of records, cut into chunks that a process can read alone, so that a file may be larger than memory.

    chunks(path)     where to cut: Chunks in order, found without decoding where the format allows it
    objects(chunk)   (line or row, decoded object or Broken) pairs of one chunk

JSON lines, JSON lists, CSV, Parquet, Arrow streams, directories of these, and `hub:owner/name[:config][:split]`, which
`datasets` fetches (or finds in its cache, without a network) as Arrow files.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from train import hub
from train.errors import DataError
from train.formats import KEYS

CHUNK_BYTES = 2 << 20
CHUNK_ROWS = 5000
LARGEST_OBJECT = 64 << 20
"""Bytes of one object of a JSON list; beyond it the list is taken to be broken."""
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
PIECE_BYTES = 64 << 20
"""Of a Parquet row group that is larger, a chunk is a part. Pandas writes a million records as one group, and a chunk's
records lie in the memory of one process. A part is found by decoding what stands before it, so they are not small."""


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


def chunks(path: str) -> Iterator[Chunk]:
    """Raises DataError for an absent, unreadable or unknown file."""
    for file, shown in files(path):
        kind = kind_of(file)
        try:
            if kind in _TEXTS and _starts_with(file, _UTF16):
                yield Chunk(kind, file, shown, 0, 0, 1, broken=f"UTF-16 and not UTF-8; {_SAVE.format('UTF-16')}")
            else:
                yield from _KINDS[kind].cut(file, shown)
        except OSError as error:
            raise DataError(f"cannot read {shown}: {error.strerror or error}") from None


def objects(chunk: Chunk) -> Pairs:
    if chunk.broken:
        yield chunk.line, Broken(chunk.broken)
    else:
        yield from _KINDS[chunk.kind].read(chunk)


def files(path: str) -> list[tuple[str, str]]:
    """(file, what messages call it) of a source. Raises DataError."""
    if path.startswith("hub:"):
        return _hub(path)
    place = Path(path)
    if place.is_dir():
        found = sorted(str(file) for file in place.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
        if not found:
            raise DataError(f"{path}: no file of records in this directory ({_KNOWN})")
        return [(file, file) for file in found]
    kind_of(path)
    if not place.exists():
        raise DataError(f"no such data file: {path}", "data.train and data.eval name files of records")
    return [(path, path)]


def kind_of(file: str) -> str:
    kind = _SUFFIXES.get(Path(file).suffix.lower())
    if kind is None:
        packed = Path(file).suffix.lower() in _PACKED
        advice = ("unpack it first: a compressed file cannot be read from the middle",) if packed else ()
        raise DataError(f"{file}: unknown kind of file; known: {_KNOWN}", *advice)
    return kind


def _starts_with(file: str, marks: tuple[bytes, ...]) -> bool:
    with Path(file).open("rb") as opened:
        return opened.read(4).startswith(marks)


def digest(file: str) -> str:
    """Hash of a file's content; a file that cannot be read raises DataError."""
    found = hashlib.blake2b(digest_size=16)
    try:
        with open(file, "rb") as content:  # noqa: PTH123 - hashing is all that happens here
            while block := content.read(1 << 22):
                found.update(block)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    return found.hexdigest()


# JSON lines ----------------------------------------------------------------------------------------------------------


def _cut_lines(path: str, shown: str) -> Iterator[Chunk]:
    with Path(path).open("rb") as file:
        start, line = 0, 1
        while block := file.read(CHUNK_BYTES):
            block += file.readline()
            end = start + len(block)
            yield Chunk("lines", path, shown, start, end, line)
            start, line = end, line + block.count(b"\n")


def _read_lines(chunk: Chunk) -> Pairs:
    decode = msgspec.json.decode
    for number, raw in enumerate(_bytes(chunk).split(b"\n"), chunk.line):
        try:
            yield number, decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if raw.strip():
                yield number, _decode_slowly(raw)


def _decode_slowly(raw: bytes) -> Any:
    """What the fast decoder refuses, with a message that names the column; the standard one takes NaN and the like."""
    try:
        return _whole(json.loads(raw.decode("utf-8")))
    except UnicodeDecodeError as error:
        return Broken(_encoding(error))
    except json.JSONDecodeError as error:
        return Broken(_bad_json(error))
    except RecursionError:
        return Broken("bad JSON: nested too deeply")


# A JSON list ---------------------------------------------------------------------------------------------------------


def _cut_json(path: str, shown: str) -> Iterator[Chunk]:
    """A list is decoded object by object, to know where to cut; anything else is taken for JSON lines."""
    with Path(path).open("rb") as file:
        head = file.read(4096).removeprefix(_BOM).lstrip()
    if not head.startswith(b"["):
        yield from _cut_lines(path, shown)
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


def _read_list(chunk: Chunk) -> Pairs:
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
                        yield _Item(where, byte, byte, Broken(_bad_json(error)))
                        return
                    if end == len(text) and not ended and text[end - 1] not in "}]":  # a number may go on
                        more()
                        continue
                    first, started = line, byte
                    escaped = text.find("\\u", to, end) >= 0
                    advance(end)
                    yield _Item(first, started, byte, _whole(value) if escaped else value)
            except UnicodeDecodeError as error:
                where = line + text.count("\n", place) + error.object[: error.start].count(b"\n")
                yield _Item(where, byte, byte, Broken(_encoding(error)))


# CSV -----------------------------------------------------------------------------------------------------------------


def _cut_csv(path: str, shown: str) -> Iterator[Chunk]:
    """Rows may hold line breaks in quotes, so the file is read as rows to find where it can be cut."""
    csv.field_size_limit(LARGEST_OBJECT)
    with Path(path).open("rb") as file:
        taken = 0

        def lines() -> Iterator[str]:
            nonlocal taken
            for raw in file:
                text = raw.removeprefix(_BOM) if taken == 0 else raw  # before a quote it would be part of the name
                taken += len(raw)
                yield text.decode("utf-8", errors="replace")

        rows = csv.reader(lines())
        try:
            header = next(rows, None)
            if header is None:
                return
            columns = tuple(name.strip() for name in header)
            start, line = taken, rows.line_num + 1
            for _ in rows:
                if taken - start >= CHUNK_BYTES:
                    yield Chunk("csv", path, shown, start, taken, line, columns)
                    start, line = taken, rows.line_num + 1
            if taken > start:
                yield Chunk("csv", path, shown, start, taken, line, columns)
        except csv.Error as error:
            yield Chunk("csv", path, shown, taken, taken, rows.line_num, broken=f"bad CSV: {error}")


def _read_csv(chunk: Chunk) -> Pairs:
    csv.field_size_limit(LARGEST_OBJECT)
    raw = _bytes(chunk)
    torn = False
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        yield chunk.line + raw.count(b"\n", 0, error.start), Broken(_encoding(error))
        text, torn = raw.decode("utf-8", errors="replace"), True
    rows = csv.reader(io.StringIO(text, newline=""))
    line = chunk.line
    for row in rows:
        if torn and "\ufffd" in "".join(row):
            pass  # told above
        elif len(row) > len(chunk.columns):
            yield line, Broken(f"{len(row)} cells in this row, {len(chunk.columns)} columns in the header")
        elif row:
            cells = {name: cell for name, cell in zip(chunk.columns, row, strict=False) if cell}
            yield line, _present(cells, chunk.columns)
        line = chunk.line + rows.line_num


def _present(cells: dict[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    """Empty cells are absent, but for those whose emptiness the format itself has a word for."""
    if "instruction" in columns and not cells.get("messages") and not cells.get("conversations"):
        for key in ("instruction", "output"):
            if key in columns:
                cells.setdefault(key, "")
    return cells


# Parquet and Arrow ---------------------------------------------------------------------------------------------------


def _cut_parquet(path: str, shown: str) -> Iterator[Chunk]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        yield Chunk("parquet", path, shown, 0, 0, 1, broken=f"not a Parquet file: {error}")
        return
    columns = tuple(name for name in file.schema_arrow.names if name in KEYS) or tuple(file.schema_arrow.names)
    row = 0
    for group in range(file.metadata.num_row_groups):
        facts = file.metadata.row_group(group)
        parts = -(-facts.total_byte_size // PIECE_BYTES) or 1
        size = max(1, -(-facts.num_rows // parts))
        last = row + facts.num_rows
        for start in range(row, last, size):
            yield Chunk("parquet", path, shown, start, min(start + size, last), start + 1, columns)
        row = last


def _read_parquet(chunk: Chunk) -> Pairs:
    import pyarrow
    from pyarrow import parquet

    row = chunk.start
    try:
        file = parquet.ParquetFile(chunk.path)
        group, at = _row_group(file, chunk.start)
        for batch in file.iter_batches(CHUNK_ROWS, row_groups=[group], columns=list(chunk.columns)):
            wanted = batch.slice(min(max(0, chunk.start - at), batch.num_rows), chunk.end - max(chunk.start, at))
            at += batch.num_rows
            for value in wanted.to_pylist():
                row += 1
                yield row, _without_nulls(value)
            if at >= chunk.end:
                return
    except (pyarrow.ArrowException, OSError) as error:
        yield row + 1, Broken(f"this Parquet file is torn: {str(error).partition(chr(10))[0]}")


def _row_group(file: Any, row: int) -> tuple[int, int]:
    """(the row group that holds this row of the file, its first row)"""
    first = 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if row < first + count:
            return group, first
        first += count
    raise OSError(f"row {row + 1} of {first}: the file has become shorter")


def _cut_arrow(path: str, shown: str) -> Iterator[Chunk]:
    table = _arrow(path)
    columns = tuple(name for name in table.column_names if name in KEYS) or tuple(table.column_names)
    for start in range(0, table.num_rows, CHUNK_ROWS):
        yield Chunk("arrow", path, shown, start, min(start + CHUNK_ROWS, table.num_rows), start + 1, columns)


def _read_arrow(chunk: Chunk) -> Pairs:
    part = _arrow(chunk.path).select(list(chunk.columns)).slice(chunk.start, chunk.end - chunk.start)
    for row, value in enumerate(part.to_pylist(), chunk.line):
        yield row, _without_nulls(value)


def _arrow(path: str) -> Any:
    """A table that lies in the file and not in memory."""
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all()


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


# The hub -------------------------------------------------------------------------------------------------------------


def _hub(path: str) -> list[tuple[str, str]]:
    """The Arrow files of a hub data set, in datasets' own cache; a directory works as a data set too. Once a node."""
    name, *rest = path.removeprefix("hub:").split(":")
    config, split = rest if len(rest) == 2 else (None, rest[0] if rest else "train")
    if len(rest) > 2 or not name:
        raise DataError(f"{path}: expected hub:owner/name, hub:owner/name:split or hub:owner/name:config:split")
    held = hub.once(f"data-{name}:{config or ''}:{split}", lambda: _fetched(path, name, config, split))
    return [(file, path) for file in held]


def _fetched(path: str, name: str, config: str | None, split: str) -> list[str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"{path} needs the package `datasets`", "pip install datasets") from None
    try:
        data = load_dataset(name, config, split=split)
    except Exception as error:  # its errors have no common base
        first = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: the data set could not be had: {first}",
            "check the spelling and the split; a private one needs HF_TOKEN in `secrets`; offline it must be cached",
        ) from None
    return [str(file["filename"]) for file in data.cache_files]


# What all of them share ----------------------------------------------------------------------------------------------


def _bytes(chunk: Chunk) -> bytes:
    with Path(chunk.path).open("rb") as file:
        file.seek(chunk.start)
        raw = file.read(chunk.end - chunk.start)
    return raw.removeprefix(_BOM) if chunk.start == 0 else raw


def _encoding(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}); {_SAVE.format('GB18030')}"


_SAVE = "save the file as UTF-8 (iconv -f {} -t UTF-8 OLD > NEW)"


def _whole(value: Any) -> Any:
    """A decoded object, or a Broken: JSON can name half of a surrogate pair ("\\ud83d", an emoji cut in two), and no
    tokenizer takes it for a text."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        return Broken(f"holds half of a character (\\u{ord(half):04x} without its other half)")
    return value


def _bad_json(error: json.JSONDecodeError) -> str:
    return f"bad JSON: {error.msg} (column {error.colno})"


_KINDS: dict[str, Kind] = {
    "lines": Kind(_cut_lines, _read_lines),
    "json": Kind(_cut_json, _read_list),
    "list": Kind(_cut_json, _read_list),
    "csv": Kind(_cut_csv, _read_csv),
    "parquet": Kind(_cut_parquet, _read_parquet),
    "arrow": Kind(_cut_arrow, _read_arrow),
}
_SUFFIXES = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_TEXTS = frozenset({"lines", "json", "csv"})
_KNOWN = ", ".join(sorted(_SUFFIXES))
_PACKED = frozenset({".gz", ".bz2", ".xz", ".zst", ".zip"})

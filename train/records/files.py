"""Files of records, cut into chunks that a process can read alone, so that a file may be larger than memory.

    chunks(path)     where to cut: Chunks in order, found without decoding where the format allows it
    objects(chunk)   (line or row, decoded object or Broken) pairs of one chunk

JSON lines, JSON lists, CSV and TSV, workbooks, Parquet, Arrow and Feather, plain text, directories of these, and data
sets of the hub (directory.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from train.config import HUBS, split_of
from train.errors import DataError
from train.records.chunk import Broken, Chunk, Objects, Reader
from train.records.directory import SUFFIXES, files_of_directory, hub_files
from train.records.encoding import UTF16_BOMS, conversion_advice, describe_encoding_error
from train.records.json_text import cut_json, cut_lines, read_lines, read_list
from train.records.tables import cut_arrow, cut_csv, cut_parquet, read_arrow, read_csv, read_parquet


def chunks(path: str) -> Iterator[Chunk]:
    """Raises DataError for an absent, unreadable or unknown file."""
    for file, shown in files(path):
        kind = kind_of(file)
        try:
            if kind in _TEXTS and _starts_with(file, UTF16_BOMS):
                yield Chunk(kind, file, shown, 0, 0, 1, broken=f"UTF-16 and not UTF-8; {conversion_advice('UTF-16')}")
            else:
                yield from _READERS[kind].cut(file, shown)
        except OSError as error:
            raise DataError(f"cannot read {shown}: {error.strerror or error}", code="ZL-DATA-01") from None


def objects(chunk: Chunk, columns: Collection[str] = ()) -> Objects:
    """The objects of a chunk; `columns` are names to read of a table besides the known ones."""
    if wanted := tuple(name for name in chunk.unread if name in columns):
        chunk = replace(chunk, columns=(*chunk.columns, *wanted))
    if chunk.broken:
        yield chunk.line, Broken(chunk.broken)
    else:
        yield from _READERS[chunk.kind].read(chunk)


def files(path: str) -> list[tuple[str, str]]:
    """(file, what messages call it) of a source. Raises DataError."""
    if path.startswith(HUBS):
        return [(file, path) for file in hub_files(path)]
    folder, split = split_of(path)
    if Path(folder).is_dir():
        return [(file, file) for file in files_of_directory(Path(folder), split)]
    place = Path(path)
    kind_of(path)
    if not place.exists():
        raise DataError(
            f"no such data file: {path}", "data.train and data.eval name files of records", code="ZL-DATA-01"
        )
    return [(path, path)]


def kind_of(file: str) -> str:
    kind = SUFFIXES.get(Path(file).suffix.lower())
    if kind is None:
        advice = [text for suffixes, text in _ADVICE if Path(file).suffix.lower() in suffixes]
        raise DataError(
            f"{file}: unknown kind of file; known: {', '.join(sorted(SUFFIXES))}", *advice, code="ZL-DATA-04"
        )
    return kind


def _starts_with(file: str, marks: tuple[bytes, ...]) -> bool:
    with Path(file).open("rb") as opened:
        return opened.read(4).startswith(marks)


def digest(file: str) -> str:
    """Hash of a file's content; a file that cannot be read raises DataError."""
    import hashlib  # OpenSSL, which the first look at the records before every start does without

    found = hashlib.blake2b(digest_size=16)
    try:
        with open(file, "rb") as content:  # noqa: PTH123 - hashing is all that happens here
            while block := content.read(1 << 22):
                found.update(block)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}", code="ZL-DATA-01") from None
    return found.hexdigest()


DOCUMENT_BYTES = 16 << 20
"""A text file is one document; a larger one is several, each of about this size."""


def cut_text(path: str, shown: str) -> Iterator[Chunk]:
    return cut_lines(path, shown, "text", DOCUMENT_BYTES)


def read_text(chunk: Chunk) -> Objects:
    try:
        yield chunk.line, {"text": chunk.read_bytes().decode("utf-8")}
    except UnicodeDecodeError as error:
        yield chunk.line, Broken(describe_encoding_error(error))


def _cut_workbook(path: str, shown: str) -> Iterator[Chunk]:
    from train.records.workbook import cut_workbook  # zip and XML, for few files

    return cut_workbook(path, shown)


def _read_workbook(chunk: Chunk) -> Objects:
    from train.records.workbook import read_workbook

    return read_workbook(chunk)


_READERS: dict[str, Reader] = {
    "lines": Reader(cut_lines, read_lines),
    "json": Reader(cut_json, read_list),
    "list": Reader(cut_json, read_list),
    "csv": Reader(cut_csv, read_csv),
    "xlsx": Reader(_cut_workbook, _read_workbook),
    "parquet": Reader(cut_parquet, read_parquet),
    "arrow": Reader(cut_arrow, read_arrow),
    "text": Reader(cut_text, read_text),
}
_TEXTS = frozenset({"json", "csv", "text"})
_ADVICE = (
    ({".gz", ".bz2", ".xz", ".zst", ".zip"}, "unpack it first: a compressed file cannot be read from the middle"),
    ({".xls", ".xlsb", ".ods"}, "save the sheet as .xlsx, or as .csv in UTF-8"),
)

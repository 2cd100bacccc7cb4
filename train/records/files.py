"""Files of records, cut into chunks that a process can read alone, so that a file may be larger than memory.

    chunks(path)     where to cut: Chunks in order, found without decoding where the format allows it
    objects(chunk)   (line or row, decoded object or Broken) pairs of one chunk

JSON lines, JSON lists, CSV, Parquet, Arrow streams, directories of these, and `hub:owner/name[:config][:split]`, which
`datasets` fetches (or finds in its cache, without a network) as Arrow files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from train.errors import DataError
from train.hub import hub
from train.records.chunk import Broken, Chunk, Objects, Reader
from train.records.encoding import UTF16_BOMS, conversion_advice
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
            raise DataError(f"cannot read {shown}: {error.strerror or error}") from None


def objects(chunk: Chunk) -> Objects:
    if chunk.broken:
        yield chunk.line, Broken(chunk.broken)
    else:
        yield from _READERS[chunk.kind].read(chunk)


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


_READERS: dict[str, Reader] = {
    "lines": Reader(cut_lines, read_lines),
    "json": Reader(cut_json, read_list),
    "list": Reader(cut_json, read_list),
    "csv": Reader(cut_csv, read_csv),
    "parquet": Reader(cut_parquet, read_parquet),
    "arrow": Reader(cut_arrow, read_arrow),
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

"""Tokens made once a node and kept: memory-mapped files under a hash of all that they depend on.

    key       content of the data files, tokenizer, template, settings, and the code that makes tokens
    entry     tokens.bin labelled.bin *.npy meta.json in one directory, written to a temporary name and renamed
    lock      one process of a node makes an entry, the others wait for it and map the same pages

An entry also remembers what was wrong with the records, so that a run that refuses them says so at once.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from train.data import workers
from train.data.tokenizer import Chunked, Recipe
from train.data.tokens import Dropped, Tokens
from train.errors import DataError
from train.hub.cachedir import cache_directory, locked, suppress_if_there
from train.records import conversations
from train.records import files as sources
from train.records.chunk import Chunk
from train.records.conversations import SHOWN_PROBLEMS, Problem
from train.rundir import write_atomic

UNUSED_DAYS = 30
"""Entries that no run has opened for so long are removed when another is made."""
_SETTLED_SECONDS = 3.0
"""A file that changed so lately may change again within its clock's tick: its hash is not remembered."""


class Told(msgspec.Struct, frozen=True):
    """A problem or warning, as meta.json holds it."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class Meta(msgspec.Struct, frozen=True):
    files: tuple[str, ...]
    """What messages called the files when the entry was made."""
    records: tuple[int, ...]
    """Readable records of each source."""
    sequences: int
    tokens: int
    loss_tokens: int
    unreadable: int
    empty: int
    """Of the unreadable ones, those with an empty question or answer."""
    problems: tuple[Told, ...]
    """The first of the unreadable ones."""
    duplicates: int
    conflicts: int
    """Records that ask what an earlier one asked and answer otherwise."""
    warnings: tuple[Told, ...]
    """The first duplicates and conflicts."""
    too_long: int
    cut: int
    share: float = 1.0
    """Of the records, chosen by hash, that were made tokens (a check of a large file looks at a sample)."""


@dataclass(frozen=True)
class Entry:
    place: Path
    meta: Meta
    tokens: Tokens
    made: bool
    """Just now, not found."""

    def array(self, name: str) -> npt.NDArray[Any]:
        """`asked`, `answered`: hashes of every readable record."""
        return _mapped(self.place / f"{name}.npy")

    def counts(self, kept: npt.NDArray[np.int64]) -> tuple[int, ...]:
        """How many of these sequences each source gave."""
        origin = np.searchsorted(np.cumsum(self.meta.records), kept, side="right")
        return tuple(int(count) for count in np.bincount(origin, minlength=len(self.meta.records)))


def directory() -> Path:
    """$ZLAUNCH_CACHE/tokens, else ~/.cache/zlaunch/tokens."""
    return cache_directory() / "tokens"


def entry(
    paths: Sequence[str],
    recipe: Recipe,
    where: Path | None = None,
    *,
    share: float = 1.0,
    processes: int | None = None,
    tokenizer: Any = None,
) -> Entry:
    """The tokens of these sources, found or made; what is made is first compared with `tokenizer` of transformers.

    Raises DataError for a source that cannot be read at all.
    """
    where = where or directory()
    where.mkdir(parents=True, exist_ok=True)
    found = [sources.files(path) for path in paths]
    files = [file for source in found for file, _ in source]
    shown = tuple(name for source in found for _, name in source)
    key = _key([len(source) for source in found], files, recipe, where)
    name = f"{key}{'' if share == 1.0 else f'-{share:.6f}'}"
    place = where / name
    with locked(where / f"{name}.lock"):
        made = not all((place / name).exists() for name in _FILES)
        if made:
            shutil.rmtree(place, ignore_errors=True)  # something that clears old files away was at it
            if tokenizer is not None:
                recipe.compare(tokenizer)
            _forget_unused(where)
            if processes is None:
                size = sum(os.stat(file).st_size for file in files)  # noqa: PTH116 - a plain system call
                processes = min(workers.cores(), workers.MOST, size // workers.SMALL + 1)

            def changed() -> bool:
                return key != _key([len(source) for source in found], files, recipe, where)

            _make(place, paths, shown, recipe, share, processes, changed)
    os.utime(place)
    return _open(place, made, shown)


def _key(sizes: Sequence[int], files: Sequence[str], recipe: Recipe, where: Path) -> str:
    """`sizes` are the sources' numbers of files."""
    parts = {
        "sources": list(sizes),
        "files": [(sources.kind_of(file), _digest(file, where)) for file in files],
        "recipe": hashlib.blake2b(repr(recipe).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
        "code": _code(),
    }
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=12).hexdigest()


def _code() -> str:
    """Hash every module that turns records into tokens: a later version that makes others must not find these."""
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(file for room in ("records", "data") for file in Path(__file__).parents[1].glob(f"{room}/*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


def _digest(file: str, where: Path) -> str:
    """Content hash, remembered by the file's place, size and times: a large file is not read again for it."""
    place = Path(file).resolve()
    status = place.stat()
    known = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    note = where / "digests" / f"{hashlib.blake2b(os.fsencode(place), digest_size=12).hexdigest()}.json"
    try:
        remembered = msgspec.json.decode(note.read_bytes())
        if remembered["status"] == known:
            return str(remembered["digest"])
    except (OSError, msgspec.DecodeError, KeyError, TypeError):
        pass
    digest = sources.digest(file)
    if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS:
        write_atomic(note, msgspec.json.encode({"status": known, "digest": digest}).decode())
    return digest


def _make(
    place: Path,
    paths: Sequence[str],
    shown: tuple[str, ...],
    recipe: Recipe,
    share: float,
    processes: int,
    changed: Callable[[], bool],
) -> None:
    temporary = place.with_name(f".{place.name}.{os.urandom(4).hex()}.tmp")
    temporary.mkdir()
    try:
        _write(temporary, paths, shown, recipe, share, processes)
        if changed():  # else later runs would find these tokens for the content that the files had before
            raise DataError(f"{', '.join(shown)}: changed while being read", "start again when nobody writes to it")
        with suppress_if_there(place / "meta.json"):
            temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    place: Path, paths: Sequence[str], files: tuple[str, ...], recipe: Recipe, share: float, processes: int
) -> None:
    per_source = [0] * len(paths)
    owners: list[int] = []  # of the chunks that are under way, in order

    def chunks() -> Iterator[Chunk]:
        for number, path in enumerate(paths):
            for chunk in sources.chunks(path):
                owners.append(number)
                yield chunk

    shown: list[tuple[int, str]] = []  # (first record, file) of every chunk
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _COLUMNS}
    problems: list[Problem] = []
    unreadable = empty = too_long = cut = total = 0
    with (place / "tokens.bin").open("wb") as tokens, (place / "labelled.bin").open("wb") as labelled:
        under_way: list[Chunk] = []

        def watched() -> Iterator[Chunk]:
            for chunk in chunks():
                under_way.append(chunk)
                yield chunk

        for place_of_chunk, done in enumerate(workers.work(recipe, watched(), share=share, processes=processes)):
            tokens.write(done.tokens.data)  # not `tofile`: what a full disk does not take is lost there without a word
            labelled.write(done.labelled.data)
            shown.append((sum(per_source), under_way[place_of_chunk].shown))
            for name, (of, kind) in _COLUMNS.items():
                values = np.array(of(done), dtype=kind)
                columns[name].append(values + sum(per_source) if name == "kept" else values)
            per_source[owners[place_of_chunk]] += len(done.lines)
            problems += done.problems[: SHOWN_PROBLEMS - len(problems)]
            unreadable, too_long, cut = unreadable + done.unreadable, too_long + done.too_long, cut + done.cut
            empty, total = empty + done.empty, total + len(done.tokens)
        for file in (tokens, labelled):
            file.flush()
            os.fsync(file.fileno())
    joined = {
        name: np.concatenate(parts) if parts else np.empty(0, _COLUMNS[name][1]) for name, parts in columns.items()
    }
    offsets = np.zeros(len(joined["lengths"]) + 1, np.int64)
    np.cumsum(joined.pop("lengths"), out=offsets[1:])
    lines = joined.pop("lines")
    repeated = _repeated(joined["asked"], joined["answered"])
    for name, array in {**joined, "offsets": offsets}.items():
        content = io.BytesIO()
        np.save(content, array)
        (place / f"{name}.npy").write_bytes(content.getbuffer())
    meta = Meta(
        files=files,
        records=tuple(per_source),
        sequences=len(offsets) - 1,
        tokens=total,
        loss_tokens=int(joined["counted"].sum(dtype=np.int64)),
        unreadable=unreadable,
        empty=empty,
        problems=tuple(Told(problem.file, problem.line, problem.text) for problem in problems),
        duplicates=len(repeated.same),
        conflicts=len(repeated.other),
        warnings=tuple(_warnings(repeated, lines, shown)),
        too_long=too_long,
        cut=cut,
        share=share,
    )
    write_atomic(place / "meta.json", msgspec.json.encode(meta).decode())


_COLUMNS: dict[str, tuple[Any, Any]] = {
    "lines": (lambda done: done.lines, np.int64),
    "asked": (lambda done: done.asked, np.uint64),
    "answered": (lambda done: done.answered, np.uint64),
    "kept": (lambda done: done.kept, np.int64),
    "answers": (lambda done: done.answers, np.int32),
    "lengths": (lambda done: done.lengths, np.int32),
    "counted": (lambda done: done.counted, np.int32),
}
"""name -> (where a Chunked has it, its type)"""
_FILES = (
    "meta.json",
    "tokens.bin",
    "labelled.bin",
    "offsets.npy",
    *(f"{name}.npy" for name in _COLUMNS if name not in ("lines", "lengths")),  # these two become others
)
"""All that an entry has."""


@dataclass(frozen=True)
class _Repeated:
    """Pairs (a later record, the first one that it repeats), ordered by the later one."""

    same: npt.NDArray[np.int64]
    other: npt.NDArray[np.int64]
    """The same question with another answer than its first."""


def _repeated(asked: npt.NDArray[np.uint64], answered: npt.NDArray[np.uint64]) -> _Repeated:
    """shape [pairs, 2] each."""
    nothing = np.empty((0, 2), np.int64)
    if not len(asked):
        return _Repeated(nothing, nothing)
    by_pair = np.lexsort((answered, asked))  # stable: equal records stay in their order
    a, b = asked[by_pair], answered[by_pair]
    new_question = np.concatenate([[True], a[1:] != a[:-1]])
    new_pair = new_question | np.concatenate([[True], b[1:] != b[:-1]])
    first_of_pair = by_pair[np.maximum.accumulate(np.where(new_pair, np.arange(len(a)), 0))]
    same = np.stack([by_pair[~new_pair], first_of_pair[~new_pair]], axis=1)
    # A question's first record is the smallest index in its group, whatever its answer hashes to.
    starts = np.flatnonzero(new_question)
    firsts = np.minimum.reduceat(by_pair, starts)
    first_of_question = firsts[np.cumsum(new_question) - 1]
    differs = answered[first_of_question] != b
    other = np.stack([by_pair[differs & new_pair], first_of_question[differs & new_pair]], axis=1)
    return _Repeated(same[np.argsort(same[:, 0])], other[np.argsort(other[:, 0])])


def _warnings(repeated: _Repeated, lines: npt.NDArray[np.int64], shown: list[tuple[int, str]]) -> Iterator[Told]:
    starts = np.array([start for start, _ in shown], dtype=np.int64)

    def place(record: int) -> tuple[str, int]:
        return shown[int(np.searchsorted(starts, record, side="right")) - 1][1], int(lines[record])

    for pairs, text in ((repeated.same, "the same record as in {}"), (repeated.other, "answers otherwise than {}")):
        for record, first in pairs[:SHOWN_PROBLEMS].tolist():
            (file, line), (first_file, first_line) = place(record), place(first)
            where = f"line {first_line}" if file == first_file else f"{first_file}:{first_line}"
            yield Told(file, line, text.format(where))


def _open(place: Path, made: bool, shown: tuple[str, ...]) -> Entry:
    meta = _called(msgspec.json.decode((place / "meta.json").read_bytes(), type=Meta), shown)
    arrays = {name: _mapped(place / f"{name}.npy") for name in ("offsets", "kept", "counted", "answers")}
    tokens = Tokens(
        tokens=_raw(place / "tokens.bin", np.int32),
        labelled=_raw(place / "labelled.bin", np.bool_),
        dropped=Dropped(meta.too_long, meta.cut),
        **arrays,
    )
    return Entry(place, meta, tokens, made)


def _called(meta: Meta, files: tuple[str, ...]) -> Meta:
    """What was told of files of the same content under other names, told of these."""
    new = {old: now for old, now in zip(meta.files, files, strict=True) if old != now}

    def told(one: Told) -> Told:
        text = one.text
        for old, now in new.items():
            text = text.replace(f"{old}:", f"{now}:")
        return Told(new.get(one.file, one.file), one.line, text)

    if not new:
        return meta
    problems, warnings = (tuple(told(one) for one in each) for each in (meta.problems, meta.warnings))
    return msgspec.structs.replace(meta, files=files, problems=problems, warnings=warnings)


def _mapped(path: Path) -> npt.NDArray[Any]:
    """An empty array cannot be memory-mapped."""
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)
    return array


def _raw(path: Path, kind: Any) -> npt.NDArray[Any]:
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, kind)


def _forget_unused(where: Path) -> None:
    """Runs that still map a removed entry keep their pages."""
    old = time.time() - UNUSED_DAYS * 86400
    for place in where.iterdir():
        try:
            if place.is_dir() and place.name != "digests" and place.stat().st_mtime < old:
                shutil.rmtree(place, ignore_errors=True)
        except FileNotFoundError:  # another process is at it too
            continue


def refuse_problems(meta: Meta, name: str, on_error: str) -> None:
    """Raise DataError for unreadable records, unless they are to be skipped."""
    if meta.unreadable and on_error == "stop":
        told = [Problem(problem.file, problem.line, problem.text) for problem in meta.problems]
        raise conversations.unusable(name, told, meta.unreadable)


__all__ = ["Chunked", "Entry", "Meta", "directory", "entry", "refuse_problems"]

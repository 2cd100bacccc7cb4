"""Cache the tokens of data files, once per node, under a hash of everything that they depend on.

    key       content of the data files, tokenizer, template, settings, and the code that makes tokens
    entry     tokens.bin labelled.bin *.npy meta.json in one directory, written to a temporary name and renamed
    lock      one process of a node makes an entry; the others wait for it and map the same pages

An entry also keeps what was wrong with the records, so a run that refuses them can say so at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from train.data import workers
from train.data.chunked import Chunked, Columns, Notices
from train.data.recipe import Recipe
from train.data.tokenizer import Tokenizer
from train.data.tokens import Dropped, Tokens
from train.errors import DataError
from train.hub.cachedir import cache_directory, locked, suppress_if_there
from train.records import conversations
from train.records import files as file_reader
from train.records.chunk import Chunk
from train.records.conversations import SHOWN_PROBLEMS, Problem
from train.rundir.run_files import write_atomic

UNUSED_DAYS = 30
"""Making an entry removes those that no run has opened for this long."""
_SETTLED_SECONDS = 3.0
"""Do not remember the hash of a file that changed this recently: it may change again within one tick of its clock."""


class Notice(msgspec.Struct, frozen=True):
    """Something about many records that stops nothing."""

    kind: str
    records: int
    examples: tuple[Problem, ...] = ()


class Meta(msgspec.Struct, frozen=True):
    files: tuple[str, ...]
    """The files' names in messages when the entry was made."""
    records: tuple[int, ...]
    """Readable records of each source."""
    sequences: int
    tokens: int
    loss_tokens: int
    unreadable: int
    empty: int
    """Of the unreadable ones, those with an empty question or answer."""
    problems: tuple[Problem, ...]
    """The first unreadable records."""
    duplicates: int
    conflicts: int
    """Records with the question of an earlier one and another answer."""
    warnings: tuple[Problem, ...]
    """The first duplicates and conflicts."""
    too_long: int
    cut: int
    unanswered: int = 0
    """Conversations that lost turns after their last answer."""
    untrained: int = 0
    """Records whose answers are all marked as untrained."""
    unlike_use: int = 0
    """Records with an answer after other text than the model sees in use; only with data.turns: joined."""
    thoughts: int = 0
    """Records with thoughts, counted where the chat template asks for these or not."""
    ignored: tuple[Notice, ...] = ()
    """Keys that nothing reads."""
    lost: tuple[Notice, ...] = ()
    """Roles or keys whose text the chat template leaves out."""
    special: tuple[Notice, ...] = ()
    """Special tokens that contents hold as text."""
    wrapped: tuple[Notice, ...] = ()
    """Keys of an object around the list of records."""
    share: float = 1.0
    """Share of the records, chosen by hash, that were tokenized: a check of a large file looks at a sample."""


@dataclass(frozen=True)
class Entry:
    place: Path
    meta: Meta
    tokens: Tokens
    made: bool
    """Whether this call made the entry, rather than found it."""

    def array(self, name: str) -> npt.NDArray[Any]:
        """`asked` or `answered`: a hash for every readable record."""
        return _mapped(self.place / f"{name}.npy")

    def used(self, kept: npt.NDArray[np.int64], first: Sequence[int | None]) -> tuple[int, ...]:
        """Count those of these sequences by source that belong to its `first` records (None: all)."""
        starts = np.cumsum([0, *self.meta.records])[:-1]
        limits = [min(count, most or count) for count, most in zip(self.meta.records, first, strict=True)]
        bounds = np.searchsorted(kept, np.stack([starts, starts + limits]))
        return tuple(int(count) for count in bounds[1] - bounds[0])

    def counts(self, kept: npt.NDArray[np.int64]) -> tuple[int, ...]:
        """Count these sequences by source."""
        origin = np.searchsorted(np.cumsum(self.meta.records), kept, side="right")
        return tuple(int(count) for count in np.bincount(origin, minlength=len(self.meta.records)))


def directory() -> Path:
    """$ZLAUNCH_CACHE/tokens, else ~/.cache/zlaunch/tokens."""
    return cache_directory() / "tokens"


Counted = Callable[[float, float | None], None]
"""Called with (records read, all records by the bytes read so far; None: unknown)."""


def _uncounted(records: float, all_records: float | None) -> None:
    pass


def entry(
    paths: Sequence[str],
    recipe: Recipe,
    where: Path | None = None,
    *,
    share: float = 1.0,
    processes: int | None = None,
    tokenizer: Any = None,
    read: Counted = _uncounted,
) -> Entry:
    """Find or make the tokens of these sources; compare the recipe with transformers' `tokenizer` before making any.

    Raises DataError for a source that cannot be read at all.
    """
    where = where or directory()
    where.mkdir(parents=True, exist_ok=True)
    found = [file_reader.files(path) for path in paths]
    files = [file for source in found for file, _ in source]
    shown = tuple(name for source in found for _, name in source)
    key = _key([len(source) for source in found], files, recipe, where)
    name = f"{key}{'' if share == 1.0 else f'-{share:.6f}'}"
    place = where / name
    with locked(where / f"{name}.lock"):
        made = not all((place / name).exists() for name in _FILES)
        if made:
            shutil.rmtree(place, ignore_errors=True)  # a cleaner of scratch disks may have removed a part
            if tokenizer is not None:
                Tokenizer(recipe).compare(tokenizer)
            _forget_unused(where)
            if processes is None:
                size = sum(os.stat(file).st_size for file in files)  # noqa: PTH116 - a plain system call
                processes = min(workers.cores(), workers.MAX_PROCESSES, size // workers.SMALL_BYTES + 1)

            def changed() -> bool:
                return key != _key([len(source) for source in found], files, recipe, where)

            _make(place, paths, shown, recipe, share, processes, changed, read)
    os.utime(place)
    return _open(place, made, shown, recipe)


def _key(sizes: Sequence[int], files: Sequence[str], recipe: Recipe, where: Path) -> str:
    """`sizes`: number of files of each source."""
    parts = {
        "sources": list(sizes),
        "files": [(file_reader.kind_of(file), _digest(file, where)) for file in files],
        "recipe": hashlib.blake2b(repr(recipe).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
        "code": _code(),
    }
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=12).hexdigest()


def _code() -> str:
    """Hash every module that turns records into tokens: another version of the code must not reuse these tokens."""
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(
        file for room in ("records", "templating", "data") for file in Path(__file__).parents[1].glob(f"{room}/*.py")
    ):
        found.update(file.read_bytes())
    return found.hexdigest()


def _digest(file: str, where: Path) -> str:
    """Content hash, remembered by path, size and times so that a large file is not read again for it."""
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
    digest = file_reader.digest(file)
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
    read: Counted,
) -> None:
    temporary = place.with_name(f".{place.name}.{os.urandom(4).hex()}.tmp")
    temporary.mkdir()
    try:
        _write(temporary, paths, shown, recipe, share, processes, read)
        if changed():  # else later runs would take these tokens for the earlier content
            raise DataError(
                f"{', '.join(shown)}: changed while being read",
                "start again when nothing writes to it",
                code="ZL-DATA-06",
            )
        with suppress_if_there(place / "meta.json"):
            temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    place: Path, paths: Sequence[str], files: tuple[str, ...], recipe: Recipe, share: float, processes: int,
    read: Counted = _uncounted,
) -> None:  # fmt: skip
    """Tokenize every chunk of the sources and write the files of an entry."""
    sent: deque[tuple[int, Chunk]] = deque()  # (source, chunk) of those that are under way, in order

    def chunks() -> Iterator[Chunk]:
        for number, path in enumerate(paths):
            for chunk in file_reader.chunks(path):
                sent.append((number, chunk))
                yield chunk

    totals, size, whole = _Totals(len(paths)), 0, _bytes_of_texts(paths)
    with (
        (place / "tokens.bin").open("wb") as tokens,
        (place / "labelled.bin").open("wb") as labelled,
        Columns(place, _COLUMNS) as columns,
    ):
        for done in workers.work(recipe, chunks(), share=share, processes=processes):
            tokens.write(done.tokens.data)  # not `tofile`, which hides that the disk is full
            labelled.write(done.labelled.data)
            source, chunk = sent.popleft()
            columns.add(done, before=sum(totals.records))
            totals.add(source, chunk.shown, done)
            size += chunk.end - chunk.start
            records = sum(totals.records)
            read(records, records * whole / size if whole and size else None)
        for file in (tokens, labelled):
            file.flush()
            os.fsync(file.fileno())
    duplicates = _find_duplicates(columns.read("asked"), columns.read("answered"))
    warnings = tuple(_describe_duplicates(duplicates, columns.read("lines"), totals.starts))
    loss_tokens = int(columns.read("counted").sum(dtype=np.int64))
    columns.keep(*(name for name in _COLUMNS if f"{name}.npy" in _FILES))
    meta = Meta(
        files=files,
        records=tuple(totals.records),
        sequences=columns.keep_offsets("lengths"),
        tokens=totals.tokens,
        loss_tokens=loss_tokens,
        unreadable=totals.unreadable,
        empty=totals.empty,
        problems=tuple(totals.problems),
        duplicates=duplicates.sames,
        conflicts=duplicates.conflicts,
        warnings=warnings,
        too_long=totals.too_long,
        cut=totals.cut,
        unanswered=totals.unanswered,
        untrained=totals.untrained,
        unlike_use=totals.unlike_use,
        thoughts=totals.thoughts,
        ignored=_notices(totals.ignored),
        lost=_notices(totals.lost),
        special=_notices(totals.special),
        wrapped=_notices(totals.wrapped),
        share=share,
    )
    write_atomic(place / "meta.json", msgspec.json.encode(meta).decode())


def bytes_of(paths: Sequence[str]) -> int:
    """Bytes of the files of the sources."""
    return sum(Path(file).stat().st_size for path in paths for file, _ in file_reader.files(path))


def _bytes_of_texts(paths: Sequence[str]) -> int | None:
    """Bytes of the sources, if all are text files: the chunks of tables are measured in rows."""
    files = [file for path in paths for file, _ in file_reader.files(path)]
    if any(file_reader.kind_of(file) not in ("lines", "json", "csv", "text") for file in files):
        return None
    return sum(Path(file).stat().st_size for file in files)


def _notices(found: Notices) -> tuple[Notice, ...]:
    return tuple(Notice(kind, count, tuple(found.examples[kind])) for kind, count in found.counts.items())


_COLUMNS: dict[str, Any] = {
    "lines": np.int64,
    "asked": np.uint64,
    "answered": np.uint64,
    "kept": np.int64,
    "answers": np.int32,
    "lengths": np.int32,
    "counted": np.int32,
}
"""Lists of a Chunked that become one array of the whole entry, and the type of that array."""
_FILES = (
    "meta.json",
    "tokens.bin",
    "labelled.bin",
    "offsets.npy",
    *(f"{name}.npy" for name in _COLUMNS if name not in ("lines", "lengths")),  # warnings and offsets replace these two
)
"""Every file of an entry."""


class _Totals:
    """What the chunks of all sources add up to, as they arrive one by one."""

    def __init__(self, sources: int) -> None:
        self.records = [0] * sources
        """Readable records of each source."""
        self.starts: list[tuple[int, str]] = []
        """(number of its first record, file) of every chunk."""
        self.problems: list[Problem] = []
        self.tokens = self.unreadable = self.empty = self.too_long = self.cut = self.unanswered = self.untrained = 0
        self.unlike_use = 0
        self.ignored, self.lost, self.special, self.wrapped = Notices(), Notices(), Notices(), Notices()
        self.thoughts = 0

    def add(self, source: int, file: str, done: Chunked) -> None:
        self.starts.append((sum(self.records), file))
        self.records[source] += len(done.lines)
        self.problems += done.problems[: SHOWN_PROBLEMS - len(self.problems)]
        self.tokens += len(done.tokens)
        self.unreadable += done.unreadable
        self.empty += done.empty
        self.too_long += done.too_long
        self.cut += done.cut
        self.unanswered += done.unanswered
        self.untrained += done.untrained
        self.unlike_use += done.unlike_use
        self.thoughts += done.thoughts
        self.ignored.merge(done.ignored)
        self.lost.merge(done.lost)
        self.special.merge(done.special)
        self.wrapped.merge(done.wrapped)


@dataclass(frozen=True)
class _Duplicates:
    """How many records repeat an earlier one, and the first of the (record, first record that it repeats) pairs."""

    sames: int
    conflicts: int
    """The same question, but another answer."""
    same: npt.NDArray[np.int64]
    conflicting: npt.NDArray[np.int64]


AT_ONCE = 1 << 20
"""Records that are compared at once. All at once would take 150 bytes of memory per record."""


def _find_duplicates(
    asked: npt.NDArray[np.uint64], answered: npt.NDArray[np.uint64], at_once: int = AT_ONCE
) -> _Duplicates:
    """`asked` and `answered` may be mapped files. Equal questions have equal hashes, so each group of hashes by their
    highest bits holds all that can repeat each other."""
    bits = max(0, len(asked) // at_once).bit_length()
    counts, pairs = [0, 0], [[np.empty((0, 2), np.int64)] for _ in range(2)]
    for group in range(1 << bits):
        places = _places_of(asked, group, bits)
        for kind, found in enumerate(_among(places, asked[places], answered[places])):
            counts[kind] += len(found)
            pairs[kind].append(found[np.argsort(found[:, 0], kind="stable")][:SHOWN_PROBLEMS])
    first = [np.concatenate(part) for part in pairs]
    same, other = (part[np.argsort(part[:, 0], kind="stable")][:SHOWN_PROBLEMS] for part in first)
    return _Duplicates(counts[0], counts[1], same, other)


def _places_of(hashes: npt.NDArray[np.uint64], group: int, bits: int) -> npt.NDArray[np.int64]:
    """Where the hashes have these highest bits, in order."""
    if not bits:
        return np.arange(len(hashes), dtype=np.int64)
    found = [
        start + np.flatnonzero(hashes[start : start + AT_ONCE] >> np.uint64(64 - bits) == group)
        for start in range(0, len(hashes), AT_ONCE)
    ]
    return np.concatenate(found)


def _among(
    places: npt.NDArray[np.int64], asked: npt.NDArray[np.uint64], answered: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The (repeating record, first record) pairs of these records: with the same answer, and with another."""
    nothing = np.empty((0, 2), np.int64)
    if not len(places):
        return nothing, nothing
    by_pair = np.lexsort((answered, asked))  # stable: equal records stay in their order
    a, b = asked[by_pair], answered[by_pair]
    new_question = np.concatenate([[True], a[1:] != a[:-1]])
    new_pair = new_question | np.concatenate([[True], b[1:] != b[:-1]])
    first_of_pair = by_pair[np.maximum.accumulate(np.where(new_pair, np.arange(len(a)), 0))]
    same = np.stack([by_pair[~new_pair], first_of_pair[~new_pair]], axis=1)
    # The first record of a question is the smallest index of its group, whatever the hash of its answer.
    starts = np.flatnonzero(new_question)
    firsts = np.minimum.reduceat(by_pair, starts)
    first_of_question = firsts[np.cumsum(new_question) - 1]
    differs = answered[first_of_question] != b
    other = np.stack([by_pair[differs & new_pair], first_of_question[differs & new_pair]], axis=1)
    return places[same], places[other]


def _describe_duplicates(
    duplicates: _Duplicates, lines: npt.NDArray[np.int64], shown: list[tuple[int, str]]
) -> Iterator[Problem]:
    starts = np.array([start for start, _ in shown], dtype=np.int64)

    def place(record: int) -> tuple[str, int]:
        return shown[int(np.searchsorted(starts, record, side="right")) - 1][1], int(lines[record])

    for pairs, text in (
        (duplicates.same, "the same record as in {}"),
        (duplicates.conflicting, "the question of {} with another answer"),
    ):
        for record, first in pairs.tolist():
            (file, line), (first_file, first_line) = place(record), place(first)
            where = f"line {first_line}" if file == first_file else f"{first_file}:{first_line}"
            yield Problem(file, line, text.format(where))


def _open(place: Path, made: bool, shown: tuple[str, ...], recipe: Recipe) -> Entry:
    meta = _renamed(msgspec.json.decode((place / "meta.json").read_bytes(), type=Meta), shown)
    tokens = Tokens(
        tokens=_raw(place / "tokens.bin", np.int32),
        labelled=_raw(place / "labelled.bin", np.bool_),
        dropped=Dropped(meta.too_long, meta.cut),
        next_turn=recipe.next_turn,
        offsets=_mapped(place / "offsets.npy"),
        kept=_mapped(place / "kept.npy"),
        counted=_mapped(place / "counted.npy"),
        answers=_mapped(place / "answers.npy"),
    )
    return Entry(place, meta, tokens, made)


def _renamed(meta: Meta, files: tuple[str, ...]) -> Meta:
    """Problems about files of the same content under other names, with the names of now."""
    new = {old: now for old, now in zip(meta.files, files, strict=True) if old != now}

    def renamed(finding: Problem) -> Problem:
        text = finding.text
        for old, now in new.items():
            text = text.replace(f"{old}:", f"{now}:")
        return Problem(new.get(finding.file, finding.file), finding.line, text)

    def noticed(notices: tuple[Notice, ...]) -> tuple[Notice, ...]:
        return tuple(Notice(one.kind, one.records, tuple(map(renamed, one.examples))) for one in notices)

    if not new:
        return meta
    return msgspec.structs.replace(
        meta,
        files=files,
        problems=tuple(map(renamed, meta.problems)),
        warnings=tuple(map(renamed, meta.warnings)),
        ignored=noticed(meta.ignored),
        lost=noticed(meta.lost),
        special=noticed(meta.special),
        wrapped=noticed(meta.wrapped),
    )


def _mapped(path: Path) -> npt.NDArray[Any]:
    """Memory-map an array, unless it is empty and cannot be mapped."""
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)
    return array


def _raw(path: Path, kind: Any) -> npt.NDArray[Any]:
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, kind)


def _forget_unused(where: Path) -> None:
    """Remove old entries. Runs that still map one keep its pages."""
    old = time.time() - UNUSED_DAYS * 86400
    for place in where.iterdir():
        try:
            if place.is_dir() and place.name != "digests" and place.stat().st_mtime < old:
                shutil.rmtree(place, ignore_errors=True)
        except FileNotFoundError:  # another process removes it too
            continue


def notes(meta: Meta) -> list[str]:
    """What became of records in ways that stop nothing, a line each, for people."""
    found = [f"{one.records:,} records stand in the list under the key {one.kind!r}" for one in meta.wrapped]
    found += [f"{one.records:,} records: the key {one.kind!r} is not read" for one in meta.ignored]
    for one in meta.lost:
        found.append(f"{one.records:,} records: the chat template leaves out text of {one.kind}{_examples(one)}")
    for one in meta.special:
        places = ", ".join(f"{example.file}:{example.line}" for example in one.examples)
        found.append(f"{one.records:,} records hold the text {one.kind!r}, which is read as plain text ({places})")
    if meta.unanswered:
        found.append(f"{meta.unanswered:,} conversations end without an answer: their last turns are left out")
    if meta.untrained:
        found.append(f"{meta.untrained:,} records are left out: none of their answers is marked as trained")
    if meta.unlike_use:
        found.append(
            f"{meta.unlike_use:,} records: with data.turns: joined some answers follow other text than in use, as the"
            " chat template shows past turns differently; data.turns: each trains on the prompts in use"
        )
    return found


def _examples(notice: Notice) -> str:
    shown = [f"{one.file}:{one.line}: {' '.join(one.text.split())[:60]!r}" for one in notice.examples]
    return f" ({'; '.join(shown)})" if shown else ""


def refuse_problems(meta: Meta, name: str, on_error: str) -> None:
    """Raise DataError for unreadable records, unless the job skips them."""
    if meta.unreadable and on_error == "stop":
        raise conversations.unusable(name, meta.problems, meta.unreadable)

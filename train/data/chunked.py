"""Chunked: what the tokenizer makes of one chunk of records. Columns: the numbers of all chunks, on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.tokens import Bools, Int32
from train.records.conversations import SHOWN_PROBLEMS, Problem

EXAMPLES = 3
"""Examples kept of each kind of notice."""


@dataclass
class Notices:
    """Things worth telling that stop nothing: for each kind, how many records, and the first of them."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Problem]] = field(default_factory=dict)

    def add(self, kind: str, file: str, line: int, text: str = "", count: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + count
        found = self.examples.setdefault(kind, [])
        if text and len(found) < EXAMPLES:
            found.append(Problem(file, line, text))

    def merge(self, others: Notices) -> None:
        for kind, count in others.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            found = self.examples.setdefault(kind, [])
            found += others.examples[kind][: EXAMPLES - len(found)]


@dataclass
class Chunked:
    """The sequences of a chunk. Its readable records are numbered from 0."""

    lines: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    """64-bit hash of everything before the last answer, with normalized white space."""
    answered: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    """The first problems."""
    unreadable: int = 0
    empty: int = 0
    """Unreadable records with an empty question or answer."""
    ignored: Notices = field(default_factory=Notices)
    """By key that nothing reads."""
    lost: Notices = field(default_factory=Notices)
    """By role or key: text that the chat template leaves out."""
    special: Notices = field(default_factory=Notices)
    """By special token that a content holds as text."""
    wrapped: Notices = field(default_factory=Notices)
    """By key of an object around the list of records."""
    unanswered: int = 0
    """Conversations that lost turns after their last answer."""
    untrained: int = 0
    """Records whose answers are all marked as untrained."""
    unlike_use: int = 0
    """Records with an answer after other text than the model sees in use; only with data.turns: joined."""
    thoughts: int = 0
    """Records with thoughts, counted where the chat template asks for these or not."""
    kept: list[int] = field(default_factory=list)
    """For each sequence the number of its record."""
    answers: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)
    """Tokens with loss, by sequence."""
    tokens: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    labelled: Bools = field(default_factory=lambda: np.empty(0, np.bool_))
    too_long: int = 0
    cut: int = 0

    def refuse(self, problem: Problem) -> None:
        self.unreadable += 1
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(problem)


BLOCK = 1 << 20
"""Numbers of a column that are in memory at once."""


class Columns:
    """Lists of Chunked, each of which becomes one array: written as the chunks come, so memory does not grow."""

    def __init__(self, place: Path, kinds: Mapping[str, Any]) -> None:
        self.place, self.kinds = place, {name: np.dtype(kind) for name, kind in kinds.items()}

    def __enter__(self) -> Columns:
        with ExitStack() as stack:
            self._files = {name: stack.enter_context(self._raw(name).open("wb")) for name in self.kinds}
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def _raw(self, name: str) -> Path:
        return self.place / f"{name}.raw"

    def add(self, done: Chunked, *, before: int) -> None:
        """`before`: records of the chunks before. A chunk numbers its own from 0."""
        for name, file in self._files.items():
            values = np.array(getattr(done, name), dtype=self.kinds[name])
            file.write((values + before if name == "kept" else values).data)

    def read(self, name: str) -> npt.NDArray[Any]:
        """A column, mapped."""
        raw = self._raw(name)
        return np.memmap(raw, self.kinds[name], "r") if raw.stat().st_size else np.empty(0, self.kinds[name])

    def keep(self, *names: str) -> None:
        """Make these columns files of NumPy."""
        for name in names:
            raw, kind = self._raw(name), self.kinds[name]
            with raw.open("rb") as source, (self.place / f"{name}.npy").open("wb") as out:
                _write_header(out, kind, raw.stat().st_size // kind.itemsize)
                shutil.copyfileobj(source, out, BLOCK)
            raw.unlink()

    def keep_offsets(self, lengths: str) -> int:
        """Make offsets.npy of a column of lengths, and remove the other columns; returns the number of lengths."""
        sizes, total = self.read(lengths), 0
        with (self.place / "offsets.npy").open("wb") as out:
            _write_header(out, np.dtype(np.int64), len(sizes) + 1)
            out.write(np.zeros(1, np.int64).data)
            for start in range(0, len(sizes), BLOCK):
                ends = total + np.cumsum(sizes[start : start + BLOCK], dtype=np.int64)
                out.write(ends.data)
                total = int(ends[-1])
        for name in self.kinds:
            self._raw(name).unlink(missing_ok=True)
        return len(sizes)


def _write_header(out: Any, kind: np.dtype[Any], count: int) -> None:
    """That of a file of NumPy with one dimension."""
    described = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(out, described)

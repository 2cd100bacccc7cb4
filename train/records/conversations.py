"""Records: a conversation and where it was read. What cannot be read becomes a Problem with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from train.errors import DataError
from train.records import files, formats
from train.records.chunk import Broken
from train.records.conversation import PLAIN, Details, RecordOptions, Unreadable

SHOWN_PROBLEMS = 20
EXAMPLES = 3
"""Problems of one kind that an error lists."""
_VALUES = re.compile(r"\d+|'[^']*'|\(found: .*")
"""What differs between problems of one kind."""


@dataclass(frozen=True)
class Record:
    """One conversation: (role, content) pairs that end with an answer of the assistant."""

    messages: tuple[tuple[str, str], ...]
    file: str
    line: int
    """Line of a text file or row of a table, from 1."""
    task: str | None = None
    details: Details | None = None

    @property
    def question(self) -> str:
        """The last message of the user."""
        return next((text for role, text in reversed(self.messages) if role == "user"), "")

    @property
    def answer(self) -> str:
        return self.messages[-1][1]


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with a record, or only worth a warning, and where."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def each(path: str, options: RecordOptions = PLAIN) -> Iterator[Record | Problem]:
    """Every record of a source, in order. Raises DataError for a source that cannot be opened."""
    for chunk in files.chunks(path):
        for line, value in files.objects(chunk, options.column_names):
            yield to_record(value, chunk.shown, line, options)


def to_record(value: Any, file: str, line: int, options: RecordOptions = PLAIN) -> Record | Problem:
    """A decoded object as a Record, or a Problem."""
    if isinstance(value, Broken):
        return Problem(file, line, value.text)
    try:
        found = formats.to_conversation(value, options)
    except Unreadable as error:
        return Problem(file, line, str(error))
    return Record(tuple(found.messages), file, line, formats.task_of(value, options), found.details)


def unusable(name: str, problems: Sequence[Problem], count: int) -> DataError:
    """The error for `count` unreadable records, with at most EXAMPLES of the first `problems` of each kind."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(_VALUES.sub("", problem.text), []).append(problem)
    shown = [problem for kind in kinds.values() for problem in kind[:EXAMPLES]]
    more = f"\n  ... and {count - len(shown):,} more" if count > len(shown) else ""
    return DataError(
        f"{count} record{'s' * (count != 1)} of {name} cannot be used:" + "".join(f"\n  {one}" for one in shown) + more,
        "correct these lines, or set data.on_error=skip to leave them out",
    )

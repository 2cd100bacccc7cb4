"""Chunked: what the tokenizer makes of one chunk of records."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

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

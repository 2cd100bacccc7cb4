"""Tokens: records as one flat array of token ids, with the tokens that carry loss and the bounds of each sequence."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Dropped:
    """What tokenization dropped or cut, in sequences."""

    too_long: int = 0
    """Dropped, because the prompt alone leaves no space for an answer, or because data.overlong is `drop`."""
    cut: int = 0
    """Kept without the end of the answer."""


@dataclass(frozen=True)
class Tokens:
    tokens: Int32
    """[total]"""
    labelled: Bools
    """[total]: whether the prediction of this token counts in the loss."""
    offsets: npt.NDArray[np.int64]
    """[sequences + 1]: where each sequence begins, and the end of the last."""
    kept: npt.NDArray[np.int64]
    """For each sequence the index of its record among those that were tokenized."""
    dropped: Dropped = Dropped()
    counted: Int32 | None = None
    """Tokens with loss per sequence, if tokenization counted them."""
    answers: Int32 | None = None
    """Answers that each sequence holds of its conversation; the last may be cut. None: all."""
    next_turn: tuple[int, int] | None = None
    """(token, prediction): where this token carries loss, the model predicts another one: prompts.AnswerEnds."""
    places: npt.NDArray[np.int64] | None = None
    """Where among `offsets` each sequence is, if these are a selection; None: all, in order."""
    whole: bool = False
    """Every token but the first of a sequence carries loss (data.train_on_prompt), not only marked ones."""

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.places is None else len(self.places)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        return (
            np.diff(self.offsets) if self.places is None else self.offsets[self.places + 1] - self.offsets[self.places]
        )

    @cached_property
    def loss_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens with loss per sequence."""
        if self.whole:
            return np.asarray(self.lengths - 1)
        if self.counted is not None:
            return np.asarray(self.counted, dtype=np.int64)
        sums = np.concatenate([[0], np.cumsum(self.labelled, dtype=np.int64)])
        found: npt.NDArray[np.int64] = sums[self.offsets[1:]] - sums[self.offsets[:-1]]
        return found if self.places is None else found[self.places]

    def sequence(self, index: int) -> tuple[Int32, Bools]:
        """(tokens, labelled) of one sequence."""
        place = index if self.places is None else int(self.places[index])
        part = slice(int(self.offsets[place]), int(self.offsets[place + 1]))
        return self.tokens[part], self.labelled[part]

    def targets(self, index: int) -> Int32:
        """The target of each token but the last: the next token if it carries loss, else IGNORED."""
        tokens, labelled = self.sequence(index)
        wanted = tokens[1:]
        if self.next_turn is not None:
            token, prediction = self.next_turn
            wanted = np.where((wanted == token) & labelled[1:], np.int32(prediction), wanted)
        return wanted if self.whole else np.where(labelled[1:], wanted, np.int32(IGNORED))

    def prompt_size(self, index: int) -> int:
        """Return the number of tokens before the last answer."""
        _, labelled = self.sequence(index)
        without_loss = np.flatnonzero(~labelled)
        return int(without_loss[-1]) + 1 if len(without_loss) else 0

    def prompt(self, index: int) -> list[int]:
        """Return the tokens before the last answer: the prompt for generation."""
        found: list[int] = self.sequence(index)[0][: self.prompt_size(index)].tolist()
        return found


def fingerprint(tokens: Tokens) -> str:
    """Return a text that is equal for equal sequences, from their count, lengths and tokens with loss."""
    lengths, counts = tokens.lengths, tokens.loss_tokens
    found = hashlib.blake2b(np.stack([lengths, counts]).tobytes(), digest_size=4).hexdigest()
    return f"{len(tokens)} of {int(lengths.sum())} tokens ({found})"


def first(tokens: Tokens, records: int) -> Tokens:
    """Return the sequences of the first `records` records."""
    count = int(np.searchsorted(tokens.kept, records, side="left"))
    return select(tokens, np.arange(count))


def select(tokens: Tokens, which: npt.NDArray[np.int64]) -> Tokens:
    """Return these sequences, in this order; the tokens themselves stay where they are."""
    return replace(
        tokens,
        places=which if tokens.places is None else tokens.places[which],
        kept=tokens.kept[which],
        counted=None if tokens.counted is None else tokens.counted[which],
        answers=None if tokens.answers is None else tokens.answers[which],
    )


MOST_BARS = 24
"""Bars of the histogram of lengths."""


def lengths(tokens: Tokens) -> dict[str, Any]:
    """How long the sequences are, in tokens: `median`, `p95`, `most`, and a histogram.

    Bar i counts the sequences of `from + i * width` tokens up to the next bar.
    """
    found = tokens.lengths
    if not len(found):
        return {}
    least, most = int(found.min()), int(found.max())
    width = -(-(most - least + 1) // MOST_BARS)
    counts = np.bincount((found - least) // width)
    median, p95 = (int(value) for value in np.quantile(found, (0.5, 0.95), method="higher"))
    return {"median": median, "p95": p95, "most": most, "from": least, "width": width, "counts": counts.tolist()}


IGNORED = -100

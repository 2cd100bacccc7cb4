"""Records as tokens: one sequence a record, by the model's own chat template, loss on answers and their end only.

Each conversation is rendered once and tokenised once; where the answers lie is known in the rendered text
(chat_template.py) and carried to tokens by the tokenizer's offsets. So no prompt is ever tokenised apart from its
answer, where a merge across the border would make other tokens.

    Recipe      all that tokenising depends on: plain data, so that processes and cache keys can have it
    Tokenizer   a Recipe at work, chunk by chunk; imports neither torch nor transformers
    Tokens      the result, flat: tokens [total] int32, labelled [total] bool, offsets [sequences + 1] int64
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Dropped:
    """What tokenising left out or cut, in sequences."""

    too_long: int = 0
    """Dropped: the prompt alone leaves no room for an answer, or `overlong` is drop."""
    cut: int = 0
    """Kept, with the end of the answer cut off."""


@dataclass(frozen=True)
class Tokens:
    tokens: Int32
    labelled: Bools
    """Is this token's prediction part of the loss?"""
    offsets: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64]
    """For each sequence the position of its record in what was tokenised."""
    dropped: Dropped = Dropped()
    counted: Int32 | None = None
    """Labelled tokens of every sequence, where they were counted when they were made."""
    answers: Int32 | None = None
    """For each sequence the number of its conversation's answers that it holds, the last perhaps cut; None: all."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)

    @cached_property
    def loss_tokens(self) -> npt.NDArray[np.int64]:
        """Labelled tokens of every sequence."""
        if self.counted is not None:
            return np.asarray(self.counted, dtype=np.int64)
        sums = np.concatenate([[0], np.cumsum(self.labelled, dtype=np.int64)])
        found: npt.NDArray[np.int64] = sums[self.offsets[1:]] - sums[self.offsets[:-1]]
        return found

    def sequence(self, index: int) -> tuple[Int32, Bools]:
        """(tokens, labelled) of one sequence."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.tokens[part], self.labelled[part]

    def prompt(self, index: int) -> list[int]:
        """The tokens before the last answer: what the model is given to answer."""
        tokens, labelled = self.sequence(index)
        place = len(tokens)
        while place and labelled[place - 1]:
            place -= 1
        found: list[int] = tokens[:place].tolist()
        return found


# A transformers tokenizer's side --------------------------------------------------------------------------------------


# The recipe and its work ----------------------------------------------------------------------------------------------


def fingerprint(tokens: Tokens) -> str:
    """Equal for equal sequences; of their number, lengths and labelled tokens, which lie in memory anyway."""
    lengths, counts = tokens.lengths, tokens.loss_tokens
    found = hashlib.blake2b(np.stack([lengths, counts]).tobytes(), digest_size=4).hexdigest()
    return f"{len(tokens)} of {int(lengths.sum())} tokens ({found})"


def first(tokens: Tokens, records: int) -> Tokens:
    """The sequences of the first `records` records."""
    count = int(np.searchsorted(tokens.kept, records, side="left"))
    return replace(
        tokens,
        offsets=tokens.offsets[: count + 1],
        kept=tokens.kept[:count],
        counted=None if tokens.counted is None else tokens.counted[:count],
        answers=None if tokens.answers is None else tokens.answers[:count],
    )


IGNORED = -100

"""The border between a prompt and its answer, among tokens.

Training tokenizes a conversation as one text, and every use tokenizes the prompt alone. These agree unless a merge
crosses the border, as in an answer that begins with a line break behind a prompt that ends with one. There the prompt's
tokens become those of the prompt alone, and the rest of a token that crossed becomes tokens of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from train.templating.turn_layout import Rendered

Encode = Callable[[str], tuple[list[int], Any]]
"""text -> (token ids, encoding)"""


class Encoded(NamedTuple):
    """One sequence as tokens. `rendered.text` is the text that `encoding` refers to."""

    ids: list[int]
    encoding: Any
    rendered: Rendered
    encode: Encode
    """Encodes other texts in the same way."""


@dataclass(frozen=True)
class Mend:
    """What differs at one border: ids[begin:first] becomes `prompt`, and ids[first] becomes `answer` if given."""

    begin: int
    first: int
    prompt: list[int]
    answer: list[int] | None


class Borders:
    def __init__(self, backend: Any, added: Collection[int]) -> None:
        """`added`: tokens that split every text, so that nothing merges across them."""
        self._backend = backend
        self._added = frozenset(added)
        self._known: dict[tuple[Encode, str], list[int]] = {}

    def mend(self, encoded: Encoded, start: int, first: int) -> Mend | None:
        """None if the tokens before the answer at character `start`, whose first token is `first`, are the prompt's."""
        ids, encoding, rendered, encode = encoded
        begin = next((place for place in range(first - 1, -1, -1) if ids[place] in self._added), 0)
        char = encoding.token_to_chars(begin)[0] if begin else 0
        segment = rendered.text[char:start]
        expected = self._known.get((encode, segment))
        if expected is None:
            expected = encode(segment)[0]
            if len(segment) < _SHORT and len(self._known) < _REMEMBERED:
                self._known[encode, segment] = expected
        if expected == ids[begin:first]:
            return None
        answer = None
        if first < len(ids) and encoding.token_to_chars(first)[0] < start:
            answer = self._rest(encoded, char, start, first)
        return Mend(begin, first, expected, answer)

    def _rest(self, encoded: Encoded, char: int, start: int, first: int) -> list[int]:
        """Tokens of that part of token `first` that follows the border."""
        ids, encoding, rendered, encode = encoded
        crossing, end = encoding.token_to_chars(first)
        prompt_ids, prompt = encode(rendered.text[char:start])
        before = [
            prompt_ids[place]
            for place in range(len(prompt_ids))
            if (found := prompt.token_to_chars(place)) is not None and found[0] + char >= crossing
        ]
        head = "".join(self._backend.id_to_token(token) or "" for token in before)
        whole = self._backend.id_to_token(ids[first]) or ""
        if head and whole.startswith(head):
            return [token.id for token in self._backend.model.tokenize(whole[len(head) :])]
        return encode(rendered.text[start:end])[0]


_SHORT, _REMEMBERED = 200, 10_000


def apply(ids: Sequence[int], labelled: Sequence[bool], mends: Sequence[Mend]) -> tuple[list[int], list[bool]]:
    """The sequence with its borders mended; answers keep their loss and prompts stay without."""
    ids, labelled = list(ids), list(labelled)
    for mend in reversed(mends):
        if mend.answer is not None:
            ids[mend.first : mend.first + 1] = mend.answer
            labelled[mend.first : mend.first + 1] = [True] * len(mend.answer)
        ids[mend.begin : mend.first] = mend.prompt
        labelled[mend.begin : mend.first] = [False] * len(mend.prompt)
    return ids, labelled

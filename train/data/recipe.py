"""Recipe: everything that tokens depend on besides the records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from train.config import Data
from train.data.prompts import answer_ends, own_template
from train.records.conversation import PLAIN, RecordOptions
from train.records.formats import check_columns


@dataclass(frozen=True)
class Recipe:
    """Plain data, so that processes can receive it and cache keys can hash it."""

    tokenizer: str
    """tokenizer.json, without padding and truncation, which do not concern records and may change with use."""
    template: str
    specials: tuple[tuple[str, str], ...]
    eos: int
    """Put behind the last answer of a conversation if the template writes no end there."""
    ends: tuple[int, ...]
    """Tokens that end an answer."""
    max_length: int
    overlong: str = "cut"
    turns: str = "auto"
    options: RecordOptions = PLAIN
    next_turn: tuple[int, int] | None = None
    """prompts.AnswerEnds.next_turn"""
    begin: int | None = None
    """Put before a document; None: this tokenizer puts nothing there."""
    end: int = -1
    """Put behind a document."""
    overlap: int = 0
    """data.document_overlap"""

    @staticmethod
    def of(
        tokenizer: Any, *, max_length: int, overlong: str = "cut", turns: str = "auto", options: RecordOptions = PLAIN,
        overlap: int = 0,
    ) -> Recipe:  # fmt: skip
        """What a fast tokenizer of transformers does to records. `Tokenizer.compare` checks it."""
        named = tokenizer.special_tokens_map.items()
        found = answer_ends(tokenizer)
        return Recipe(
            _unpadded(tokenizer.backend_tokenizer.to_str()),
            own_template(tokenizer),
            tuple(sorted((name, str(value)) for name, value in named if isinstance(value, (str, bytes)) or value)),
            found.last,
            found.ends,
            max_length,
            overlong,
            turns,
            options,
            found.next_turn,
            *_around_documents(tokenizer, found.last),
            overlap,
        )

    @staticmethod
    def of_job(tokenizer: Any, data: Data) -> Recipe:
        """Raises DataError for a key of data.columns that no format has."""
        options = RecordOptions.of(data)
        check_columns(options)
        return Recipe.of(
            tokenizer,
            max_length=data.max_length,
            overlong=data.overlong,
            turns=data.turns,
            options=options,
            overlap=data.document_overlap,
        )


def _around_documents(tokenizer: Any, last: int) -> tuple[int | None, int]:
    """(token before a document, token behind it), as the model's own pretraining had them."""
    begin = tokenizer.bos_token_id
    first = list(tokenizer("a")["input_ids"][:1])
    end = tokenizer.eos_token_id
    return (begin if begin is not None and first == [begin] else None), last if end is None else end


def _unpadded(text: str) -> str:
    """tokenizer.json without its padding and truncation, which precede the many megabytes of all other keys."""
    head, key, rest = text.partition('"added_tokens":')
    if set(json.loads(f"{head.rstrip().rstrip(',')}}}")) == {"version", "truncation", "padding"}:
        return f'{{"version":"1.0","truncation":null,"padding":null,{key}{rest}'
    return json.dumps({**json.loads(text), "truncation": None, "padding": None}, ensure_ascii=False)

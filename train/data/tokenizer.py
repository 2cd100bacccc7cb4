"""Tokenize conversations with offsets, so that no prompt is tokenized apart from its answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from train.data.chat_template import ChatTemplate, Rendered, TemplateRefusal, Turns
from train.data.prompts import end_ids, own_template, render
from train.data.tokens import Bools, Dropped, Int32, Tokens
from train.errors import UserError
from train.records import files, formats
from train.records.chunk import Broken, Chunk
from train.records.conversations import SHOWN_PROBLEMS, Problem, Record
from train.records.formats import Unreadable

_BATCH = 512
"""Texts that the tokenizer gets at once."""


_CHECKED_EVERY = 256
"""One record of so many is rendered both ways."""


@dataclass(frozen=True)
class Recipe:
    tokenizer: str
    """tokenizer.json, without padding and truncation, which are not our records' and may change as it is used."""
    template: str
    specials: tuple[tuple[str, str], ...]
    eos: int
    ends: tuple[int, ...]
    """Tokens that end an answer."""
    max_length: int
    overlong: str = "cut"
    system: str | None = None

    @staticmethod
    def of(tokenizer: Any, *, max_length: int, overlong: str = "cut", system: str | None = None) -> Recipe:
        """What a fast transformers tokenizer does to records. `compare` proves it."""
        named = tokenizer.special_tokens_map.items()
        return Recipe(
            _unpadded(tokenizer.backend_tokenizer.to_str()),
            own_template(tokenizer),
            tuple(sorted((name, str(value)) for name, value in named if isinstance(value, (str, bytes)) or value)),
            int(tokenizer.eos_token_id),
            tuple(end_ids(tokenizer)),
            max_length,
            overlong,
            system,
        )

    def compare(self, tokenizer: Any) -> None:
        """Our rendering and tokens of two conversations beside transformers' own. Raises UserError if they differ."""
        own = Tokenizer(self)
        for probe in _PROBES:
            try:
                text = own.template.render(probe)
            except TemplateRefusal as error:
                if len(probe) > 2:  # a template for single questions
                    continue
                raise UserError(str(error), "give data.chat_template a template of your own") from None
            theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
            if text != render(tokenizer, probe) or own.encode([text])[0].ids != theirs:
                raise UserError(
                    "the chat template or tokenizer of this model works otherwise in transformers than on its own",
                    "give data.chat_template a plain template",
                )


def _unpadded(text: str) -> str:
    """tokenizer.json without its padding and truncation. It is many megabytes, and they stand before all others."""
    head, key, rest = text.partition('"added_tokens":')
    if set(json.loads(f"{head.rstrip().rstrip(',')}}}")) == {"version", "truncation", "padding"}:
        return f'{{"version":"1.0","truncation":null,"padding":null,{key}{rest}'
    return json.dumps({**json.loads(text), "truncation": None, "padding": None}, ensure_ascii=False)


_PROBES: tuple[Turns, ...] = (
    (("user", "a b"), ("assistant", "c. d")),
    (("user", "你好 "), ("assistant", "好\n"), ("user", "1 + 1?"), ("assistant", " 2")),
)


@dataclass
class Chunked:
    """What one chunk of a source came to. Records are numbered within the chunk, the readable ones only."""

    lines: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    """64-bit hash of everything before the last answer, whitespace normalised."""
    answered: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    """The first of them."""
    unreadable: int = 0
    empty: int = 0
    """Of the unreadable ones, those with an empty question or answer."""
    kept: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)
    tokens: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    labelled: Bools = field(default_factory=lambda: np.empty(0, np.bool_))
    too_long: int = 0
    cut: int = 0

    def refuse(self, problem: Problem) -> None:
        self.unreadable += 1
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(problem)


class Tokenizer:
    """A recipe at work. `share` of all records, chosen by hash, are made tokens; all of them are read and rendered."""

    def __init__(self, recipe: Recipe, share: float = 1.0) -> None:
        from tokenizers import Tokenizer as Backend

        self.recipe = recipe
        self.template = ChatTemplate(recipe.template, dict(recipe.specials))
        self.backend = Backend.from_str(recipe.tokenizer)
        self.backend.post_processor = None  # it would cut blanks off the offsets, and adds no token of ours
        self.ends = frozenset(recipe.ends)
        self.limit = int(share * 2**64)

    def encode(self, texts: list[str]) -> list[Any]:
        return list(self.backend.encode_batch(texts, add_special_tokens=False))

    def chunk(self, chunk: Chunk) -> Chunked:
        """Read and tokenise one chunk."""
        return self._work(lambda: self._conversations(chunk), chunk.shown)

    def records(self, records: Sequence[Record]) -> Chunked:
        return self._work(lambda: ((record.line, list(record.messages)) for record in records), "")

    def _work(self, conversations: Any, shown: str) -> Chunked:
        """Again from the start when a sample shows that conversations of some roles need the slow way."""
        self.template.trust()
        while True:
            try:
                return self._once(conversations(), shown)
            except _Distrusted:
                continue

    def _once(self, conversations: Iterable[tuple[int, formats.Messages | Unreadable]], shown: str) -> Chunked:
        done = Chunked()
        waiting: list[tuple[int, Rendered]] = []
        tokens: list[Int32] = []  # arrays: a list of numbers takes nine times the memory
        labelled: list[Bools] = []
        for line, messages in conversations:
            if isinstance(messages, Unreadable):
                done.refuse(Problem(shown, line, str(messages)))
                done.empty += isinstance(messages, formats.Empty)
                continue
            number = len(done.lines)
            asked, answered = _hashes(messages)
            done.lines.append(line)
            done.asked.append(asked)
            done.answered.append(answered)
            try:
                if number % _CHECKED_EVERY < 2 and not self.template.agrees(messages):
                    self.template.distrust(messages)
                    raise _Distrusted
                sequences = self.template.sequences(messages)
            except TemplateRefusal as error:  # a record all the same: Part.records counts it when it reads again
                done.refuse(Problem(shown, line, str(error)))
                continue
            if asked ^ answered <= self.limit:  # both: many records may ask the same
                waiting += [(number, sequence) for sequence in sequences]
            if len(waiting) >= _BATCH:
                self._encode(waiting, done, tokens, labelled)
                waiting = []
        self._encode(waiting, done, tokens, labelled)
        done.tokens = np.concatenate(tokens) if tokens else np.empty(0, np.int32)
        done.labelled = np.concatenate(labelled) if labelled else np.empty(0, np.bool_)
        return done

    def _conversations(self, chunk: Chunk) -> Iterator[tuple[int, formats.Messages | Unreadable]]:
        """(line, conversation or what is wrong with it)"""
        system = self.recipe.system
        for line, value in files.objects(chunk):
            if isinstance(value, Broken):
                yield line, Unreadable(value.text)
                continue
            try:
                yield line, formats.to_messages(value, system)
            except Unreadable as error:
                yield line, error

    def _encode(
        self, waiting: list[tuple[int, Rendered]], done: Chunked, tokens: list[Int32], labelled: list[Bools]
    ) -> None:
        longest = self.recipe.max_length
        made: list[list[int]] = []
        for (number, rendered), encoding in zip(waiting, self.encode([item.text for _, item in waiting]), strict=True):
            ids, mask = self._label(encoding, rendered)
            answers = rendered.answers
            if len(ids) > longest:
                if self.recipe.overlong == "drop" or not mask[:longest].any():
                    done.too_long += 1
                    continue
                done.cut += 1
                ids, mask, lost = _cut(ids, mask, longest)
                answers -= lost
            count = int(np.count_nonzero(mask))
            if count:
                done.kept.append(number)
                done.answers.append(answers)
                done.lengths.append(len(ids))
                done.counted.append(count)
                made.append(ids)
                labelled.append(mask)
        tokens.append(np.fromiter(chain.from_iterable(made), np.int32, sum(map(len, made))))

    def _label(self, encoding: Any, rendered: Rendered) -> tuple[list[int], Bools]:
        """Token ids up to the last answer's end token, and which of them carry loss."""
        ids: list[int] = encoding.ids
        mask = np.zeros(len(ids) + 1, dtype=np.bool_)
        size, stop = len(rendered.text), 0
        for start, end in rendered.spans:
            # From the first token that reaches into the answer to the last that begins in it.
            first = _token_at(encoding, start, size, len(ids))
            stop = _token_at(encoding, end, size, len(ids))
            while stop < len(ids) and encoding.token_to_chars(stop)[0] < end:
                stop += 1
            inside = next((place for place in range(first, stop) if ids[place] in self.ends), None)
            if inside is not None:  # a template that marks the end token as part of the answer
                stop = inside + 1
                mask[first:stop] = True
                continue
            mask[first:stop] = True
            if stop < len(ids) and ids[stop] in self.ends:
                mask[stop] = True
                stop += 1
            elif (start, end) == rendered.spans[-1]:  # the template writes no end token: ours
                ids = [*ids[:stop], self.recipe.eos]
                mask[stop] = True
                stop += 1
        mask[0] = False  # nothing stands before it that could predict it
        return ids[:stop], mask[:stop]


class _Distrusted(Exception):
    pass


def _cut(ids: list[int], mask: Bools, longest: int) -> tuple[list[int], Bools, int]:
    """(tokens, labelled, answers lost): no more than `longest`, and nothing behind the last answer that begins there.

    The question after it has no loss, and whoever is to answer the sequence would answer half a question.
    """
    begins = np.flatnonzero(mask & ~np.concatenate([[False], mask[:-1]]))
    stop = int(np.flatnonzero(mask[:longest])[-1]) + 1
    return ids[:stop], mask[:stop], int(np.count_nonzero(begins >= stop))


def _token_at(encoding: Any, char: int, size: int, count: int) -> int:
    """The first token that reaches beyond this character; characters that no token covers are passed over."""
    for place in range(char, size):
        token = encoding.char_to_token(place)
        if token is not None:
            return int(token)
    return count


def _hashes(messages: formats.Messages) -> tuple[int, int]:
    """64-bit hashes of (all before the last answer, the last answer), equal for texts that differ in blanks only."""
    asked = "\0".join([f"{role}\1{' '.join(text.split())}" for role, text in messages[:-1]])
    answered = " ".join(messages[-1][1].split())
    return _hash(asked), _hash(answered)


def _hash(text: str) -> int:
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found, "little")


def tokenize(tokenizer: Any, records: Sequence[Record], *, max_length: int, overlong: str) -> Tokens:
    """Records that lie in memory, as Tokens. Raises UserError for one that the chat template cannot show."""
    recipe = Recipe.of(tokenizer, max_length=max_length, overlong=overlong)
    recipe.compare(tokenizer)
    done = Tokenizer(recipe).records(records)
    if done.problems:
        raise UserError(done.problems[0].text)
    offsets = np.concatenate([[0], np.cumsum(done.lengths, dtype=np.int64)]).astype(np.int64)
    return Tokens(
        done.tokens,
        done.labelled,
        offsets,
        np.array(done.kept, dtype=np.int64),
        Dropped(done.too_long, done.cut),
        np.array(done.counted, dtype=np.int32),
        np.array(done.answers, dtype=np.int32),
    )

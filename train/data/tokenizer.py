"""Tokenizer: a Recipe at work, chunk by chunk. It imports neither torch nor transformers.

Each conversation is rendered once and tokenized once, with offsets. The answers are known as ranges of the rendered
text (chat_template.py), and offsets carry these ranges to tokens. The tokens before an answer are those of the prompt
alone, as every use of the model has them (borders.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from train.data.borders import Borders, Encoded, apply
from train.data.chunked import Chunked
from train.data.prompts import render
from train.data.recipe import Recipe
from train.data.special_tokens import Guard
from train.data.tokens import Bools, Dropped, Int32, Tokens
from train.errors import UserError
from train.records import files, formats
from train.records.chunk import Broken, Chunk
from train.records.conversation import DOCUMENT, Conversation, Details, Empty, Messages, Unreadable
from train.records.conversations import Problem, Record
from train.templating import thinking
from train.templating.chat_template import ChatTemplate, TemplateRefusal
from train.templating.turn_layout import Rendered, Turns

_BATCH = 512
"""Texts per call of the tokenizer."""
_CHECKED_EVERY = 256
"""One record of this many is rendered both ways."""
_PROBES: tuple[Turns, ...] = (
    (("user", "a b"), ("assistant", "c. d")),
    (("user", "你好 "), ("assistant", "好\n"), ("user", "1 + 1?"), ("assistant", " 2")),
)


WHOLE = (0,)
"""Ordinals of a document, which has no answers."""


class _Waiting(NamedTuple):
    """A sequence to be encoded with others."""

    record: int
    rendered: Rendered
    ordinals: tuple[int, ...]
    """For each span, the number of its answer in the conversation, from 1."""
    encoded: Encoded | None
    """Set if it was encoded already, because its contents hold special tokens."""


class Tokenizer:
    """`share` of all records, chosen by hash, are tokenized; all of them are read and rendered."""

    def __init__(self, recipe: Recipe, share: float = 1.0) -> None:
        from tokenizers import Tokenizer as Backend

        self.recipe = recipe
        self.template = ChatTemplate(recipe.template, dict(recipe.specials), recipe.turns)
        self.backend = Backend.from_str(recipe.tokenizer)
        self.backend.post_processor = None  # it would cut blanks off the offsets, and adds no token of ours
        self.ends = frozenset(recipe.ends)
        self.next_turn = recipe.next_turn[0] if recipe.next_turn else None
        self.limit = int(share * 2**64)
        around, searched = _around_contents(self.template), self.template.searched
        self.guard = Guard(recipe.tokenizer, recipe.ends, around, searched, self.template.tags)
        self.borders = Borders(self.backend, _splitting(recipe.tokenizer))

    def encode(self, texts: list[str]) -> list[Any]:
        return list(self.backend.encode_batch(texts, add_special_tokens=False))

    def encode_one(self, text: str) -> tuple[list[int], Any]:
        """(token ids, encoding)"""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding

    def prompt_ids(self, messages: Turns) -> list[int]:
        """The tokens that stand before the next answer to `messages`, exactly as in training.

        Special tokens in contents are plain text. Raises TemplateRefusal for a conversation that cannot be shown.
        """
        if self.guard.texts_in(messages):
            protected, _ = self.guard.protect(messages, None)
            return self._encoded(Rendered(self.template.prompt_text(protected), (), 0)).ids
        return self.encode_one(self.template.prompt_text(messages))[0]

    def trained_prompt(self, messages: Turns, details: Details | None = None) -> list[int] | None:
        """The tokens before the answer to `messages` in a training sequence; None if the template refuses these."""
        done = self.records([Record((*messages, ("assistant", "ok")), "probe", 1, None, details)])
        if done.problems:
            return None
        size = done.lengths[-1]
        ids, loss = done.tokens[-size:].tolist(), done.labelled[-size:].tolist()
        first = next(place for place in range(size, 0, -1) if not loss[place - 1])
        return list(ids[:first])

    def compare(self, tokenizer: Any) -> None:
        """Compare rendering, tokens and prompts of two conversations with those of transformers. Raises UserError."""
        for probe in _PROBES:
            try:
                text = self.template.render(probe)
            except TemplateRefusal as error:
                if len(probe) > 2:  # a template for single questions
                    continue
                raise UserError(
                    str(error), "give data.chat_template a template of your own", code="ZL-MODEL-05"
                ) from None
            theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
            if text != render(tokenizer, probe) or self.encode([text])[0].ids != theirs:
                raise UserError(
                    "the chat template or tokenizer of this model gives other results inside transformers than outside",
                    "give data.chat_template a plain template",
                    code="ZL-MODEL-05",
                )
            asked = tokenizer(render(tokenizer, probe[:-1], add_generation_prompt=True), add_special_tokens=False)
            if asked["input_ids"] != self.prompt_ids(probe[:-1]):
                raise UserError(
                    "the chat template of this model asks for an answer otherwise than it shows one",
                    "give data.chat_template a template whose add_generation_prompt writes what stands before answers",
                    code="ZL-MODEL-05",
                )

    def chunk(self, chunk: Chunk) -> Chunked:
        """Read and tokenize one chunk."""
        done = self._work(lambda: self._conversations(chunk), chunk.shown)
        for column in set(chunk.unread) - self.recipe.options.column_names:
            done.ignored.add(column, chunk.shown, chunk.line, count=len(done.lines))
        if chunk.wrapper:
            done.wrapped.add(chunk.wrapper, chunk.shown, chunk.line, chunk.wrapper, count=len(done.lines))
        return done

    def records(self, records: Sequence[Record], shown: str = "") -> Chunked:
        def conversations() -> Iterator[tuple[int, Conversation]]:
            return ((record.line, Conversation(list(record.messages), record.details)) for record in records)

        return self._work(conversations, shown)

    def _work(
        self, conversations: Callable[[], Iterable[tuple[int, Conversation | Unreadable]]], shown: str
    ) -> Chunked:
        """Start again when a sample shows that conversations of some roles need the slow way."""
        self.template.trust()
        while True:
            try:
                return self._once(conversations(), shown)
            except _Distrusted:
                continue

    def _once(self, conversations: Iterable[tuple[int, Conversation | Unreadable]], shown: str) -> Chunked:
        done = Chunked()
        waiting: list[_Waiting] = []
        tokens: list[Int32] = []  # arrays: a list of numbers takes nine times the memory
        labelled: list[Bools] = []
        for line, found in conversations:
            if isinstance(found, Unreadable):
                done.refuse(Problem(shown, line, str(found)))
                done.empty += isinstance(found, Empty)
                continue
            number = len(done.lines)
            asked, answered = _hashes(found.messages)
            done.lines.append(line)
            done.asked.append(asked)
            done.answered.append(answered)
            for key in found.ignored:
                done.ignored.add(key, shown, line)
            done.unanswered += found.dropped_turns > 0
            try:
                sequences = self._sequences(number, found, done, shown, line)
            except TemplateRefusal as error:  # a record all the same: Part.records counts it when it reads again
                done.refuse(Problem(shown, line, str(error)))
                continue
            if asked ^ answered <= self.limit:  # both: many records may ask the same
                waiting += sequences
            if len(waiting) >= _BATCH:
                self._encode(waiting, done, tokens, labelled)
                waiting = []
        self._encode(waiting, done, tokens, labelled)
        done.tokens = np.concatenate(tokens) if tokens else np.empty(0, np.int32)
        done.labelled = np.concatenate(labelled) if labelled else np.empty(0, np.bool_)
        return done

    def _conversations(self, chunk: Chunk) -> Iterator[tuple[int, Conversation | Unreadable]]:
        """(line, conversation or what is wrong with it)"""
        for line, value in files.objects(chunk, self.recipe.options.column_names):
            if isinstance(value, Broken):
                yield line, Unreadable(value.text)
                continue
            try:
                yield line, formats.to_conversation(value, self.recipe.options)
            except Unreadable as error:
                yield line, error

    def _sequences(self, number: int, found: Conversation, done: Chunked, shown: str, line: int) -> list[_Waiting]:
        """Render a record. Raises TemplateRefusal, and _Distrusted if a sample shows that the fast way is wrong."""
        messages, details = found.messages, found.details
        if messages[0][0] == DOCUMENT:
            return [self._document(number, messages, done, shown, line)]
        special = self.guard.texts_in(messages, details)
        if special:
            protected, details = self.guard.protect(messages, details)
            rendered = self.template.sequences(protected, details)
        else:
            if details is None and number % _CHECKED_EVERY < 2 and not self.template.agrees(messages):
                self.template.distrust(messages)
                raise _Distrusted
            rendered = self.template.sequences(messages, details)
        for what, text in {what: text for item in reversed(rendered) for what, text in reversed(item.lost)}.items():
            done.lost.add(what, shown, line, self.guard.restored(text))
        done.unlike_use += not all(item.as_used for item in rendered)
        for token in special:
            done.special.add(token, shown, line, f"holds {token!r}")
        made = []
        if self.template.thinking is not None:
            done.thoughts += thinking.has_thoughts(messages, details, self.template.tags)
        untrained = _untrained_answers(messages, details)
        for item in rendered:
            trained, ordinals = _trained(item, untrained)
            if trained is not None:
                made.append(_Waiting(number, trained, ordinals, self._encoded(trained) if special else None))
        done.untrained += not made
        return made

    def _document(self, number: int, messages: Messages, done: Chunked, shown: str, line: int) -> _Waiting:
        """A text alone. Special tokens in it are plain text, as in contents of conversations."""
        special = self.guard.texts_in(messages)
        for token in special:
            done.special.add(token, shown, line, f"holds {token!r}")
        text = self.guard.protect(messages, None)[0][0][1] if special else messages[0][1]
        rendered = Rendered(text, ((0, len(text)),), 0)
        return _Waiting(number, rendered, WHOLE, self._encoded(rendered) if special else None)

    def _parts(self, ids: list[int]) -> Iterator[tuple[list[int], Bools, list[int], tuple[int, ...]]]:
        """A document with its ends as sequences of at most max_length tokens, each token with loss in one of them.

        A part begins with the last tokens of the part before it, as context. The first token of a sequence has no loss.
        """
        begin = [] if self.recipe.begin is None else [self.recipe.begin]
        whole, longest = [*begin, *ids, self.recipe.end], self.recipe.max_length
        overlap = min(self.recipe.overlap, longest - 1)
        for start in range(0, max(1, len(whole) - overlap), longest - overlap):
            part = whole[start : start + longest]
            mask = np.ones(len(part), dtype=np.bool_)
            mask[: max(1, overlap if start else 0)] = False
            yield part, mask, [0], WHOLE

    def _encoded(self, rendered: Rendered) -> Encoded:
        try:
            return Encoded(*self.guard.encode(rendered), self.guard.encode_one)
        except ValueError:
            raise TemplateRefusal(
                "a content holds special tokens as text, and this tokenizer cannot read them as plain text"
            ) from None

    def _encode(self, waiting: list[_Waiting], done: Chunked, tokens: list[Int32], labelled: list[Bools]) -> None:
        longest = self.recipe.max_length
        made: list[list[int]] = []
        encodings = iter(self.encode([item.rendered.text for item in waiting if item.encoded is None]))
        for item in waiting:
            encoded = item.encoded
            if encoded is None:
                encoding = next(encodings)
                encoded = Encoded(encoding.ids, encoding, item.rendered, self.encode_one)
            whole = item.ordinals == WHOLE
            for ids, mask, firsts, ordinals in (
                self._parts(encoded.ids) if whole else self._labelled(encoded, item.ordinals)
            ):
                if len(ids) > longest:
                    if self.recipe.overlong == "drop" or not mask[:longest].any():
                        done.too_long += 1
                        continue
                    done.cut += 1
                    ids, mask = _cut(ids, mask, longest)
                count = int(np.count_nonzero(mask))
                if not count:
                    continue
                done.kept.append(item.record)
                done.answers.append(ordinals[sum(first < len(ids) for first in firsts) - 1])
                done.lengths.append(len(ids))
                done.counted.append(count)
                made.append(ids)
                labelled.append(mask)
        tokens.append(np.fromiter(chain.from_iterable(made), np.int32, sum(map(len, made))))

    def _labelled(
        self, encoded: Encoded, ordinals: tuple[int, ...]
    ) -> Iterator[tuple[list[int], Bools, list[int], tuple[int, ...]]]:
        """Yield `label` of the sequence, with the numbers of its answers.

        Where an answer merges with its prompt, the answers after it would not see it as in use: each answer becomes a
        sequence, unless the job wants them joined.
        """
        spans = encoded.rendered.spans
        ids, mask, firsts = self.label(encoded)
        mends = [self.borders.mend(encoded, start, first) for (start, _), first in zip(spans, firsts, strict=True)]
        if not any(mends):
            yield ids, mask, firsts, ordinals
            return
        joined = len(spans) == 1 or self.recipe.turns == "joined"
        for numbers in [range(len(spans))] if joined else [[number] for number in range(len(spans))]:
            part = replace(encoded.rendered, spans=tuple(spans[number] for number in numbers))
            ids, mask, firsts = self.label(encoded._replace(rendered=part))
            new, flags = apply(ids, mask.tolist(), [mend for number in numbers if (mend := mends[number])])
            yield new, np.array(flags, dtype=np.bool_), firsts, tuple(ordinals[number] for number in numbers)

    def label(self, encoded: Encoded) -> tuple[list[int], Bools, list[int]]:
        """(ids up to the end token of the last answer, which of them carry loss, first token of each answer)"""
        ids, encoding, rendered, _ = encoded
        mask = np.zeros(len(ids) + 1, dtype=np.bool_)
        size, stop = len(rendered.text), 0
        firsts = []
        for start, end in rendered.spans:
            # From the first token that reaches into the answer to the last that begins in it.
            first = _token_at(encoding, start, size, len(ids))
            firsts.append(first)
            stop = _token_at(encoding, end, size, len(ids))
            while stop < len(ids) and encoding.token_to_chars(stop)[0] < end:
                stop += 1
            inside = next((place for place in range(first, stop) if ids[place] in self.ends), None)
            if inside is not None:  # a template that marks the end token as part of the answer
                stop = inside + 1
                mask[first:stop] = True
                continue
            mask[first:stop] = True
            if stop < len(ids) and (ids[stop] in self.ends or ids[stop] == self.next_turn):
                mask[stop] = True
                stop += 1
            elif (start, end) == rendered.spans[-1]:  # the template writes no end token: ours
                ids = [*ids[:stop], self.recipe.eos]
                mask[stop] = True
                stop += 1
        mask[0] = False  # no token precedes it that could predict it
        return ids[:stop], mask[:stop], firsts


class _Distrusted(Exception):
    pass


def _splitting(tokenizer: str) -> list[int]:
    """The added tokens of tokenizer.json, without the unknown token: the model itself writes that one."""
    content = json.loads(tokenizer)
    model = content.get("model") or {}
    unknown = (model.get("unk_token"), model.get("unk_id"))
    added = content.get("added_tokens") or []
    return [token["id"] for token in added if token["content"] != unknown[0] and token["id"] != unknown[1]]


def _around_contents(template: ChatTemplate) -> str:
    """What a template writes in two plain conversations, one with a system message, if it takes such."""
    question, answer = ("user", "?"), ("assistant", "!")
    found = ""
    for turns in ([question, answer, question], [("system", "."), question, answer]):
        for prompt in (True, False):
            try:
                found += template.render(turns, prompt=prompt)
            except TemplateRefusal:
                continue
    return found


def _untrained_answers(messages: Messages, details: Details | None) -> frozenset[int]:
    """Numbers, from 1, of the answers without loss."""
    if details is None or not details.untrained:
        return frozenset()
    answers = [place for place, (role, _) in enumerate(messages) if role == "assistant"]
    return frozenset(number for number, place in enumerate(answers, 1) if place in details.untrained)


def _trained(rendered: Rendered, untrained: frozenset[int]) -> tuple[Rendered | None, tuple[int, ...]]:
    """(the sequence with the spans of trained answers only, their numbers), or (None, ()) if none is left."""
    last = rendered.answers
    ordinals = tuple(range(last - len(rendered.spans) + 1, last + 1))
    if not untrained:
        return rendered, ordinals
    kept = [place for place, number in enumerate(ordinals) if number not in untrained]
    if not kept:
        return None, ()
    spans = tuple(rendered.spans[place] for place in kept)
    return replace(rendered, spans=spans), tuple(ordinals[place] for place in kept)


def _cut(ids: list[int], mask: Bools, longest: int) -> tuple[list[int], Bools]:
    """No more than `longest` tokens, and nothing after the last answer that begins there.

    A part of a question has no loss, and in evaluation it would be the question.
    """
    stop = int(np.flatnonzero(mask[:longest])[-1]) + 1
    return ids[:stop], mask[:stop]


def _token_at(encoding: Any, char: int, size: int, count: int) -> int:
    """The first token that reaches beyond this character; characters without a token are skipped."""
    for place in range(char, size):
        token = encoding.char_to_token(place)
        if token is not None:
            return int(token)
    return count


def _hashes(messages: Messages) -> tuple[int, int]:
    """64-bit hashes of (everything before the last answer, the last answer), equal for texts that differ in blanks."""
    if messages[0][0] == DOCUMENT:  # else all documents would be answers to one question
        return _hash(" ".join(messages[0][1].split())), 0
    asked = "\0".join([f"{role}\1{' '.join(text.split())}" for role, text in messages[:-1]])
    answered = " ".join(messages[-1][1].split())
    return _hash(asked), _hash(answered)


def _hash(text: str) -> int:
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found, "little")


def tokenize(tokenizer: Any, records: Sequence[Record], *, max_length: int, overlong: str) -> Tokens:
    """Tokenize records in memory. Raises UserError for one that the chat template cannot show."""
    own = Tokenizer(Recipe.of(tokenizer, max_length=max_length, overlong=overlong))
    own.compare(tokenizer)
    done = own.records(records)
    if done.problems:
        raise UserError(done.problems[0].text, code="ZL-DATA-02")
    offsets = np.concatenate([[0], np.cumsum(done.lengths, dtype=np.int64)]).astype(np.int64)
    return Tokens(
        done.tokens,
        done.labelled,
        offsets,
        np.array(done.kept, dtype=np.int64),
        Dropped(done.too_long, done.cut),
        np.array(done.counted, dtype=np.int32),
        np.array(done.answers, dtype=np.int32),
        own.recipe.next_turn,
    )

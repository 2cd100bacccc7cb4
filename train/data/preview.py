"""Show records as training sees them: the rendered text, its tokens, which carry loss, and what became of the keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.data.recipe import Recipe
from train.data.tokenizer import Tokenizer
from train.errors import DataError
from train.records import files, formats
from train.records.chunk import Broken
from train.records.conversation import Unreadable
from train.records.conversations import Problem, Record, unusable

FIRST = 3


def preview(recipe: Recipe, paths: Sequence[str], *, first: int = FIRST, place: str | None = None) -> dict[str, Any]:
    """{"records": [...]} with one entry per sequence of the first records, or of the record at `place` (FILE:LINE).

    Raises DataError if there is no such record.
    """
    tokenizer = Tokenizer(recipe)
    found = _objects(paths, recipe)
    if place is not None:
        file, _, line = place.rpartition(":")
        found = (item for item in found if str(item[1]) == line and item[0].endswith(file))
    entries = [
        entry
        for shown, line, value in itertools.islice(found, first)
        for entry in _entries(tokenizer, shown, line, value)
    ]
    if not entries:
        raise DataError(f"there is no record {place}" if place else "the files hold no record", code="ZL-DATA-03")
    return {"records": entries}


def _objects(paths: Sequence[str], recipe: Recipe) -> Iterator[tuple[str, int, Any]]:
    for path in paths:
        for chunk in files.chunks(path):
            for line, value in files.objects(chunk, recipe.options.column_names):
                yield chunk.shown, line, value


@dataclass(frozen=True)
class Question:
    """A record to be answered."""

    value: Any
    """The record as it was read."""
    messages: tuple[tuple[str, str], ...]
    prompt: list[int]
    """Tokens before the answer, exactly as in training."""


def questions(tokenizer: Tokenizer, path: str) -> Iterator[Question | Problem]:
    """Every record of a source, of any form, with an answer or without. Raises DataError for an unreadable source."""
    for shown, line, value in _objects([path], tokenizer.recipe):
        if isinstance(value, Broken):
            yield Problem(shown, line, value.text)
            continue
        try:
            found = formats.to_question(value, tokenizer.recipe.options)
        except Unreadable as error:
            yield Problem(shown, line, str(error))
            continue
        messages, details = tuple(found.messages), found.details
        asked = messages[:-1]  # without the record's own answer
        if details is not None:  # what the record says of its own answer is no part of the question
            fields = {place: field for place, field in details.fields.items() if place < len(asked)}
            details = replace(details, fields=fields, untrained=frozenset())
        plain = details is None or not details.shape_the_text
        prompt = tokenizer.prompt_ids(asked) if plain else tokenizer.trained_prompt(asked, details)
        if prompt is None:
            yield Problem(shown, line, "the chat template cannot show this record")
            continue
        yield Question(value, asked, prompt)


def unusable_questions(path: str, problems: Sequence[Problem], count: int) -> DataError:
    return unusable(path, problems, count)


def _entries(tokenizer: Tokenizer, shown: str, line: int, value: Any) -> list[dict[str, Any]]:
    problem = {"file": shown, "line": line, "text": "", "tokens": [], "honoured": [], "ignored": []}
    if isinstance(value, Broken):
        return [{**problem, "problem": value.text}]
    try:
        found = formats.to_conversation(value, tokenizer.recipe.options)
    except Unreadable as error:
        return [{**problem, "problem": str(error)}]
    done = tokenizer.records([Record(tuple(found.messages), shown, line, None, found.details)], shown)
    read = sorted(set(_keys(value)) - set(found.ignored))
    entries, start = [], 0
    for size in done.lengths:
        ids = done.tokens[start : start + size].tolist()
        pieces = _pieces(tokenizer.backend, ids)
        tokens = [
            {"id": token, "text": text, "loss": bool(loss)}
            for token, text, loss in zip(ids, pieces, done.labelled[start : start + size], strict=True)
        ]
        start += size
        text = "".join(pieces)
        entries.append({**problem, "text": text, "tokens": tokens, "honoured": read, "ignored": list(found.ignored)})
    problems: list[Problem] = done.problems
    reason = str(problems[0].text) if problems else "no token of this record carries loss, or it is too long"
    return entries or [{**problem, "honoured": read, "ignored": list(found.ignored), "problem": reason}]


def _pieces(backend: Any, ids: list[int]) -> list[str]:
    """The text that each token adds. A character of several tokens belongs to the last of them."""
    pieces, pending, before = [], [], ""
    for token in ids:
        pending.append(token)
        text = backend.decode(pending, skip_special_tokens=False)
        if text.endswith("\ufffd") and len(pending) < 8:
            pieces.append("")
            continue
        pieces.append(text.removeprefix(before))
        pending, before = [token], backend.decode([token], skip_special_tokens=False)
    return pieces


def _keys(value: Any) -> Iterator[str]:
    """Keys with a value: of the record, and of its turns as `messages[].role`."""
    for key, item in value.items() if isinstance(value, Mapping) else [("messages", value)]:
        if item not in (None, "", [], {}):
            yield str(key)
        if isinstance(item, list) and key in (*formats.TURN_LISTS, "history"):
            yield from (f"{key}[].{name}" for turn in item if isinstance(turn, Mapping) for name in turn)


def identity(path: str) -> str:
    """The hash of a file's content; the path itself of anything else. Raises DataError."""
    return files.digest(path) if Path(path).is_file() else path

"""Read a decoded object as a conversation: the formats of the field, told apart by their keys.

turns      {"messages" | "conversations" | "conversation": [turn, ...]}; see turns.py for the kinds of turns
pairs      a question and an answer by the names of PAIRS, with an optional second part of the question
text       {"text": ...}, a document, if the job takes such

Every format may also hold `system`, `history`, `tools`, a loss flag, the reasoning and a task. Preference data, KTO
labels and media are refused. Any other key is ignored, and named. In a table (CSV, Parquet) a list may be JSON text,
and an empty cell is an absent key. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from train.errors import DataError
from train.records.conversation import DOCUMENT, PLAIN, Conversation, Empty, RecordOptions, Unreadable
from train.records.turns import (
    LOSS_KEYS,
    MEDIA_KEYS,
    REASONING_KEYS,
    TurnReader,
    as_text,
    as_tools,
    describe_keys,
    is_absent,
    renamed,
    trained,
)

TURN_LISTS = ("messages", "conversations", "conversation")
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("instruction", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "output"),
    ("content", "summary"),
    ("input", "target"),
    ("context", "target"),
    ("input", "output"),
)
"""(key of the question, key of the answer): the first pair that a record has tells its format."""
_ANSWERS = frozenset(answer for _, answer in PAIRS)
CONTEXTS = ("input", "context")
"""Keys of a second part of the question."""
TOOLS = ("tools", "functions")
TASKS = ("task", "category")
PREFERENCES = (
    "chosen",
    "rejected",
    "chosen_response",
    "rejected_response",
    "rejected_responses",
    "rejected_messages",
)

_COMMON = frozenset({"system", *TOOLS, *TASKS, *LOSS_KEYS, *REASONING_KEYS})
KEYS = frozenset(
    {*TURN_LISTS, *CONTEXTS, *PREFERENCES, *MEDIA_KEYS, "history", "label", "kto_tag", "text", *_COMMON}
    | {key for pair in PAIRS for key in pair}
)
"""Every key that a format looks at: the columns of a table worth reading."""


def to_conversation(value: Any, options: RecordOptions = PLAIN) -> Conversation:
    """The conversation of a decoded object. Raises Unreadable."""
    if (
        isinstance(value, list)
        and value
        and isinstance(value[0], Mapping)
        and not {"role", "from"}.isdisjoint(value[0])
    ):
        value = {"messages": value}
    if not isinstance(value, Mapping):
        raise Unreadable(f"expected an object, got {type(value).__name__}")
    shown = {key: key for key in value}
    if options.columns:
        value, shown = renamed(value, dict(options.columns))
    _refuse_other_data(value, shown)
    if options.documents and "text" in value and not _has_answers(value):
        return _document(value, shown, options)
    reader = TurnReader(options)
    known = _read_turns(value, reader) or _read_pair(value, reader, shown)
    if known is None:
        raise Unreadable(_unknown_keys(value, shown))
    _read_common(value, reader)
    for old, new in _replacements(options, reader.messages):
        reader.messages[:] = [(role, text.replace(old, new)) for role, text in reader.messages]
    _add_system(value, reader, options)
    dropped = _finish(value, reader)
    reader.ignore((key for key in value if key not in known and key not in _COMMON), value)
    ignored = tuple(shown.get(key, key) for key in reader.ignored)
    return Conversation(reader.messages, reader.details(), ignored, dropped)


_CHINESE = re.compile("[\u3400-\u9fff]")


def _replacements(options: RecordOptions, messages: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """data.replace for a record."""
    if not options.replace:
        return
    chinese = any(_CHINESE.search(text) for _, text in messages)
    for old, new in options.replace:
        yield old, new if isinstance(new, str) else new[0 if chinese else 1]


def _has_answers(value: Mapping[str, Any]) -> bool:
    return any(not is_absent(value.get(key)) for key in TURN_LISTS) or any(q in value and a in value for q, a in PAIRS)


def _document(value: Mapping[str, Any], shown: Mapping[str, str], options: RecordOptions) -> Conversation:
    text = _part(value, "text", required=True)
    for old, new in _replacements(options, [(DOCUMENT, text)]):
        text = text.replace(old, new)
    if not text or text.isspace():
        raise Empty("the text is empty")
    others = (key for key, item in value.items() if key not in ("text", *_COMMON) and not is_absent(item))
    return Conversation([(DOCUMENT, text)], None, tuple(shown.get(key, key) for key in others))


def to_question(value: Any, options: RecordOptions = PLAIN) -> Conversation:
    """The conversation of a record up to its last answer, which may be missing. Raises Unreadable.

    A missing answer is filled in for reading, so every form of records is read as for training; the last answer of the
    result is that one or the record's own.
    """
    found = {"messages": value} if isinstance(value, list) else value
    if not isinstance(found, Mapping):
        raise Unreadable(f"expected an object, got {type(value).__name__}")
    names, _ = renamed(found, dict(options.columns)) if options.columns else (found, {})
    turns = next((key for key in TURN_LISTS if isinstance(names.get(key), list) and names[key]), None)
    plain = replace(options, columns=(), documents=False)
    if turns is not None:
        return _question_of_turns(names, turns, plain)
    if not any(q in names and not is_absent(names.get(a)) for q, a in PAIRS):
        lone = next((q for q, _ in PAIRS if not is_absent(names.get(q))), None)
        if lone is not None:
            names = {**names, next(a for q, a in PAIRS if q == lone): "?"}
    return to_conversation(names, plain)


def _question_of_turns(value: Mapping[str, Any], key: str, options: RecordOptions) -> Conversation:
    try:
        own = to_conversation(value, options)
        if own.dropped_turns == 0:
            return own
    except Unreadable as error:
        if "there is no answer" not in str(error):
            raise
    last = value[key][-1]
    if not isinstance(last, Mapping) or {"role", "from"}.isdisjoint(last):
        raise Unreadable("the last turn is no question")
    filled = {"role": "assistant", "content": "?"} if "role" in last else {"from": "assistant", "value": "?"}
    return to_conversation({**value, key: [*value[key], filled]}, options)


def check_columns(options: RecordOptions) -> None:
    """Raise DataError for a key of data.columns that no format has."""
    known = (*sorted(KEYS), "role", "content")
    for theirs, ours in options.columns:
        if ours not in known:
            raise DataError(
                f"data.columns: {theirs!r} is mapped to {ours!r}, which no format of records has",
                f"known: {', '.join(known)}",
                code="ZL-DATA-05",
            )


def task_of(value: Any, options: RecordOptions = PLAIN) -> str | None:
    if not isinstance(value, Mapping):
        return None
    if options.columns:
        value, _ = renamed(value, dict(options.columns))
    return next((value[key] for key in TASKS if isinstance(value.get(key), str)), None)


def _refuse_other_data(value: Mapping[str, Any], shown: Mapping[str, str]) -> None:
    chosen = any(theirs in PREFERENCES and ours not in PREFERENCES for ours, theirs in shown.items())
    for key in () if chosen else PREFERENCES:  # the job may take the chosen answer and leave the other one
        if key in value and not is_absent(value[key]):
            hint = f"; data.columns: {{output: {key}}} takes it as the answer" if isinstance(value[key], str) else ""
            raise Unreadable(
                f"{shown[key]}: this is preference data (DPO and its like), and training needs one answer{hint}"
            )
    if isinstance(value.get("label"), bool) or isinstance(value.get("kto_tag"), bool):
        raise Unreadable("label: this is KTO data (answers marked good or bad), and training takes good answers only")
    for key in MEDIA_KEYS:
        if key in value and not is_absent(value[key]):
            raise Unreadable(f"{shown[key]}: this is {_MEDIA[key[:5]]} data, and only text can be trained on")


_MEDIA_TAG = re.compile(r"<(img|audio|video)>[^<>\s]+\.\w{2,5}</\1>")
"""As Qwen-VL and Qwen-Audio mark their files."""
_MEDIA = {"image": "image", "video": "video", "audio": "audio"}


def _read_turns(value: Mapping[str, Any], reader: TurnReader) -> frozenset[str] | None:
    """The keys that were read, or None if the record has no list of turns."""
    key = next((key for key in TURN_LISTS if not is_absent(value.get(key))), None)
    if key is None:
        return None
    reader.read(value[key], key)
    return frozenset({key})


def _read_pair(value: Mapping[str, Any], reader: TurnReader, shown: Mapping[str, str]) -> frozenset[str] | None:
    """The keys that were read, or None if the record has no pair of a question and an answer."""
    pair = next(((q, a) for q, a in PAIRS if q in value and a in value), None)
    if pair is None:
        lone = next(
            (key for key in ("instruction", "query", "prompt", "question") if not is_absent(value.get(key))), ""
        )
        if not lone:
            return None
        expected = next(answer for question, answer in PAIRS if question == lone)
        raise Unreadable(f"the key {expected!r} is missing" + describe_keys(value, shown))
    question, answer = pair
    if _is_turns(value[question]):  # TRL's prompt and completion
        return _read_turn_pair(value, reader, question, answer)
    parts = [_part(value, question, required=True)]
    contexts = [key for key in CONTEXTS if key not in pair]
    parts += [_part(value, key) for key in contexts]
    if not is_absent(value.get("history")):
        reader.read(value["history"], "history")
    asked = [text for text in parts if text and not text.isspace()]  # any of them may be all of the question
    reader.add("user", "\n".join(asked))
    reader.add("assistant", _part(value, answer, required=True))
    return frozenset({question, answer, *contexts, "history"})


def _is_turns(value: Any) -> bool:
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(isinstance(turn, Mapping) and "role" in turn for turn in turns)


def _read_turn_pair(value: Mapping[str, Any], reader: TurnReader, question: str, answer: str) -> frozenset[str]:
    """Question and answer as lists of turns, of which only those of the answer are trained."""
    reader.read(value[question], question)
    reader.untrained.update(range(len(reader.messages)))
    if _is_turns(value[answer]):
        reader.read(value[answer], answer)
    else:
        reader.add("assistant", _part(value, answer, required=True))
    return frozenset({question, answer})


def _part(value: Mapping[str, Any], key: str, *, required: bool = False) -> str:
    item = value.get(key)
    if item is None or item != item:  # absent, null, or NaN
        if required:
            raise Unreadable(f"the key {key!r} is missing")
        return ""
    return as_text(item, f"{key!r}")


def _read_common(value: Mapping[str, Any], reader: TurnReader) -> None:
    """Tools, reasoning and the loss flag of the whole record."""
    for key in TOOLS:
        if not is_absent(value.get(key)):
            reader.tools += as_tools(value[key], key)
    thought = next((value[key] for key in REASONING_KEYS if not is_absent(value.get(key))), None)
    if thought is not None and reader.messages and reader.messages[-1][0] == "assistant":
        last = reader.fields.setdefault(len(reader.messages) - 1, {})
        last.setdefault("reasoning_content", as_text(thought, "the reasoning"))
    if not trained(value, "the record"):
        reader.untrained.update(place for place, (role, _) in enumerate(reader.messages) if role == "assistant")


def _add_system(value: Mapping[str, Any], reader: TurnReader, options: RecordOptions) -> None:
    """The record's own system message, else the job's, before the first turn."""
    own = as_text(value["system"], "'system'") if not is_absent(value.get("system")) else ""
    has_turn = bool(reader.messages) and reader.messages[0][0] == "system"
    if own and has_turn and own != reader.messages[0][1]:
        reader.ignored["system"] = None
    text = own or options.system
    if not text or has_turn:
        return
    reader.messages.insert(0, ("system", text))
    reader.fields = {place + 1: fields for place, fields in reader.fields.items()}
    reader.untrained = {place + 1 for place in reader.untrained}


def _finish(value: Mapping[str, Any], reader: TurnReader) -> int:
    """Drop the turns after the last answer, and check that questions and answers hold something."""
    messages = reader.messages
    kept = len(messages)
    while kept and messages[kept - 1][0] != "assistant":
        kept -= 1
    if not kept:
        raise Unreadable("no turn is the assistant's: there is no answer to learn")
    dropped = len(messages) - kept
    del messages[kept:]
    asked = False
    for place, (role, text) in enumerate(messages):
        blank = not text or text.isspace()
        if "</" in text and (found := _MEDIA_TAG.search(text)):
            kind = found[1].replace("img", "image")
            raise Unreadable(f"a text holds {found[0]!r}: this is {kind} data, and only text can be trained on")
        may_be_blank = place in reader.untrained or "tool_calls" in reader.fields.get(place, ())
        if role == "assistant" and blank and not may_be_blank:
            raise Empty("the answer is empty")
        asked = asked or (role == "user" and not blank)
    if not asked:
        raise Empty("the question is empty")
    return dropped


def _unknown_keys(value: Mapping[str, Any], shown: Mapping[str, str]) -> str:
    inner = next((key for key, item in value.items() if isinstance(item, list) and item and _is_record(item[0])), None)
    if inner is not None:
        return f"the records are in the list under the key {inner!r}: save that list alone (jq .{inner} OLD > NEW)"
    lone = next(iter(value)) if len(value) == 1 else ""
    if ("text" in value or lone in _ANSWERS) and "data.columns" not in (found := describe_keys(value, shown)):
        whole = "; data.documents: true trains on whole texts" if "text" in value else ""
        return f"a text alone does not say which part of it is the answer{whole}{found}"
    return "none of the keys 'messages', 'conversations', 'instruction' and their like" + describe_keys(value, shown)


def _is_record(value: Any) -> bool:
    keys = KEYS - {"text"}  # turns of other forms have it too
    return isinstance(value, Mapping) and not keys.isdisjoint(value) and {"role", "from"}.isdisjoint(value)

"""What people write as a record, as a conversation: three formats, told apart by their keys.

instruction     {"instruction", "input"?, "output", "system"?, "history"?: [[question, answer], ...]}
ShareGPT        {"conversations": [{"from": "human" | "gpt" | "system", "value"}], "system"?}
OpenAI          {"messages": [{"role": "user" | "assistant" | "system", "content"}]}

In a table (CSV, Parquet) a list may stand as JSON text, and an empty cell is an absent key. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

Messages = list[tuple[str, str]]
"""(role, content) pairs that end with the assistant's answer."""


class Unreadable(Exception):
    """Why an object is not a record, in words for the person who wrote it."""


class Empty(Unreadable):
    """A record that would be one if its question or answer held anything."""


def to_messages(value: Any, system: str | None = None) -> Messages:
    """The conversation of a decoded object, by the first format whose key it has. Raises Unreadable.

    `system` is the system message of conversations that have none.
    """
    if not isinstance(value, Mapping):
        raise Unreadable(f"expected an object, got {type(value).__name__}")
    convert = next((convert for key, convert in FORMATS if value.get(key) is not None), None)
    if convert is None:
        known, found = ", ".join(repr(key) for key, _ in FORMATS), ", ".join(map(str, value))
        raise Unreadable(f"none of the keys {known} (found: {found})")
    messages = convert(value)
    _check(messages)
    if system and messages[0][0] != "system":
        messages.insert(0, ("system", system))
    return messages


def task_of(value: Mapping[str, Any]) -> str | None:
    task = value.get("task", value.get("category"))
    return task if isinstance(task, str) else None


def _instruction(value: Mapping[str, Any]) -> Messages:
    instruction, given, output = (
        _text(value, "instruction"),
        _text(value, "input", optional=True),
        _text(value, "output"),
    )
    messages: Messages = [("system", _text(value, "system"))] if value.get("system") else []
    if value.get("history"):
        for turn in _list(value["history"], "history"):
            if not (isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(text, str) for text in turn)):
                raise Unreadable("history must be a list of [question, answer] pairs")
            messages += [("user", _unix(turn[0])), ("assistant", _unix(turn[1]))]
    asked = [text for text in (instruction, given) if text and not text.isspace()]  # either may be all of the question
    messages.append(("user", "\n".join(asked)))
    messages.append(("assistant", output))
    return messages


def _openai(value: Mapping[str, Any]) -> Messages:
    return _turns(value["messages"], "messages", "role", "content", _OPENAI_ROLES)


def _sharegpt(value: Mapping[str, Any]) -> Messages:
    messages = _turns(value["conversations"], "conversations", "from", "value", _SHAREGPT_ROLES)
    if value.get("system") and messages and messages[0][0] != "system":
        messages.insert(0, ("system", _text(value, "system")))
    return messages


_OPENAI_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", **_OPENAI_ROLES}

FORMATS: tuple[tuple[str, Callable[[Mapping[str, Any]], Messages]], ...] = (
    ("messages", _openai),
    ("conversations", _sharegpt),
    ("instruction", _instruction),
)
"""(the key that tells a format, its reader)."""

KEYS = ("messages", "conversations", "instruction", "input", "output", "system", "history", "task", "category")
"""Every key that a format reads: the columns worth reading of a table."""


def _turns(value: Any, where: str, role_key: str, text_key: str, roles: Mapping[str, str]) -> Messages:
    messages = []
    for number, turn in enumerate(_list(value, where), 1):
        named = turn.get(role_key) if isinstance(turn, Mapping) else None
        if not isinstance(named, str):
            raise Unreadable(f"{where}: turn {number} has no {role_key!r}")
        role = roles.get(named)
        if role is None:
            raise Unreadable(f"{where}: turn {number} has the unknown role {named!r}; known: {', '.join(roles)}")
        text = turn.get(text_key)
        if type(text) is not str:
            text = _text(turn, text_key, where=f"{where}: turn {number}: ")
        messages.append((role, _unix(text)))
    return messages


def _list(value: Any, where: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise Unreadable(f"{where} is a text and no JSON list ({error})") from None
    if not isinstance(value, list):
        raise Unreadable(f"{where} must be a list, got {type(value).__name__}")
    return value


def _text(value: Mapping[str, Any], key: str, *, optional: bool = False, where: str = "") -> str:
    text = value.get(key)
    if isinstance(text, str):
        return _unix(text)
    if text is None and optional:
        return ""
    if text is None:
        raise Unreadable(f"{where}the key {key!r} is missing")
    raise Unreadable(f"{where}{key!r} must be a text, got {type(text).__name__}")


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n") if "\r" in text else text


def _check(messages: Messages) -> None:
    if not messages or messages[-1][0] != "assistant":
        raise Unreadable("the last turn must be the assistant's")
    asked = False
    for role, text in messages:
        blank = not text or text.isspace()
        if role == "assistant" and blank:
            raise Empty("the answer is empty")
        asked = asked or (role == "user" and not blank)
    if not asked:
        raise Empty("the question is empty")

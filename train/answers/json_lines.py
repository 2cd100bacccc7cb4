"""Conversations and answers as JSON lines, for programs (`train.chat --json`)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from train.answers.session import Turns
from train.errors import UserError


def converse_in_json(
    lines: Iterable[str],
    answer: Callable[..., Iterator[str]],
    write: Callable[[dict[str, Any]], None],
    system: str | None = None,
) -> None:
    """Answer a conversation per line. `answer` streams, given the turns and the options of the line."""
    write({"ready": True})
    for line in lines:
        try:
            turns, options = request_of(line)
            start: Turns = [("system", system)] if system else []
            for piece in filter(None, answer([*start, *turns], **options)):
                write({"piece": piece})
            write({"end": "done"})
        except KeyboardInterrupt:
            write({"end": "cut"})
        except UserError as error:
            write({"error": str(error), "advice": "; ".join(error.advice) or None})


def read_lines() -> Iterator[str]:
    """The lines of input, to its end. A Ctrl-C between two answers came too late to cut one."""
    while True:
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            continue
        if not line:
            return
        yield line


def request_of(line: str) -> tuple[Turns, dict[str, Any]]:
    """(conversation, options that differ) of a line of input. Raises UserError."""
    try:
        given = json.loads(line)
        turns = [(str(role), str(text)) for role, text in given["turns"]]
        options = {key: kind(given[key]) for key, kind in _OPTIONS.items() if given.get(key) is not None}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(f"not a conversation: {type(error).__name__}: {error}", code="ZL-WEB-01") from None
    if not turns or turns[-1][0] != "user" or any(role not in ("user", "assistant") for role, _ in turns):
        raise UserError(
            "a conversation has turns of `user` and `assistant`, and ends with the user's", code="ZL-WEB-01"
        )
    if not 0 <= options.get("temperature", 0.0) < math.inf or options.get("max_new_tokens", 1) < 1:
        raise UserError("temperature is at least 0, and max_new_tokens at least 1", code="ZL-WEB-01")
    return turns, options


_OPTIONS: dict[str, Callable[[Any], Any]] = {"temperature": float, "max_new_tokens": int}

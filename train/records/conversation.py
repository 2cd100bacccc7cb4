"""A conversation: roles and contents, and whatever else a record says about its turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from train.config import Data

Messages = list[tuple[str, str]]
"""(role, content) pairs that end with an answer of the assistant. Roles: system, user, assistant, tool."""


DOCUMENT = "document"
"""Role of the only message of a record that is a text alone, trained whole."""


class Unreadable(Exception):
    """Why an object is not a record, in words for its author."""


class Empty(Unreadable):
    """A record with an empty question or answer."""


@dataclass(frozen=True)
class Details:
    """What some records say beyond roles and contents."""

    tools: tuple[Mapping[str, Any], ...] = ()
    """Declarations in OpenAI's form: {"type": "function", "function": {...}}."""
    fields: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """By turn: `reasoning_content`, `tool_calls`, `name`, `tool_call_id`, as chat templates read them."""
    untrained: frozenset[int] = frozenset()
    """Turns of the assistant without loss."""

    @property
    def shape_the_text(self) -> bool:
        """Whether the rendered text depends on them."""
        return bool(self.tools or self.fields)


class Conversation(NamedTuple):
    messages: Messages
    details: Details | None = None
    """None for most records."""
    ignored: tuple[str, ...] = ()
    """Keys with a value that nothing reads; `messages[].id` is a key of turns."""
    dropped_turns: int = 0
    """Turns after the last answer, which nothing can be learned from."""


@dataclass(frozen=True)
class RecordOptions:
    """How the job wants its records to be read. Hashable: a part of the token cache's key."""

    system: str | None = None
    """System message of conversations without one."""
    columns: tuple[tuple[str, str], ...] = ()
    """(key of the data, our key) pairs."""
    roles: tuple[tuple[str, str], ...] = ()
    """(role of the data, our role) pairs."""
    replace: tuple[tuple[str, str | tuple[str, str]], ...] = ()
    """(text in a record, its replacement) pairs. Of two, the first is for records with Chinese characters."""
    documents: bool = False
    """Whether a text alone is a record."""

    @property
    def column_names(self) -> frozenset[str]:
        return frozenset(theirs for theirs, _ in self.columns)

    @staticmethod
    def of(data: Data) -> RecordOptions:
        return RecordOptions(
            data.system, _inverted(data.columns), _inverted(data.roles), tuple(data.replace.items()), data.documents
        )


def _inverted(names: Mapping[str, str | tuple[str, ...]]) -> tuple[tuple[str, str], ...]:
    """{ours: theirs or several of theirs} -> (theirs, ours) pairs."""
    return tuple(
        (theirs, ours) for ours, value in names.items() for theirs in ((value,) if isinstance(value, str) else value)
    )


PLAIN = RecordOptions()

"""Data sets as other programs name them, collected into data.train, data.eval, data.columns and data.roles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.job.importing.draft import Draft, Note

TURN_LISTS = ("messages", "conversations", "conversation")
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
USER, ASSISTANT = ("user", "human"), ("assistant", "gpt", "chatgpt", "bot", "model")
SYSTEM, TOOL = ("system", "developer"), ("tool", "function", "observation", "ipython", "tool_response")
CALL = ("function_call", "tool_call")
"""What train/records reads by itself (docs/data.md), so that data.columns and data.roles need not name it."""
_ROLES = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM, "tool": TOOL, "function_call": CALL}


@dataclass(frozen=True)
class Source:
    path: str
    first: int | None = None

    @property
    def entry(self) -> Any:
        return self.path if self.first is None else {"path": self.path, "first": self.first}


@dataclass
class Sources:
    """The data sets of one list, with the names that their records use."""

    draft: Draft
    word: str
    """Where the other program lists them: dataset, datasets."""
    found: list[Source] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, Any] = field(default_factory=dict)

    def add(self, path: str, first: int | None = None) -> None:
        self.found.append(Source(path, first))

    def rename(self, name: str, columns: Mapping[str, Any], roles: Mapping[str, Any]) -> None:
        """Names of a data set that zlaunch does not know by itself. One job has one name for each."""
        for key, mine, theirs in (("data.columns", self.columns, columns), ("data.roles", self.roles, roles)):
            for ours, named in theirs.items():
                if mine.setdefault(ours, named) != named:
                    reason = f"{key} is one for all files, and has {ours}: {mine[ours]} of another data set"
                    self.draft.lost.append(Note(f"{self.word}: {name}", {ours: named}, reason))

    def finish(self, key: str = "data.train") -> None:
        """Write the collected sources and names into the draft."""
        if self.found:
            entries = [source.entry for source in self.found]
            single = len(entries) == 1 and isinstance(entries[0], str)
            self.draft.set(key, entries[0] if single else entries, self.word)
        for name, names in (("data.columns", self.columns), ("data.roles", self.roles)):
            if names:
                self.draft.set(name, {**self.draft.value(name, {}), **names}, f"{self.word}: names of its records")

    def hold_out(self, share: float, word: str) -> None:
        """Set records apart for data.eval: a share of them, or a number."""
        if self.found:
            self.draft.set("data.eval", f"{share * 100:g}%" if share < 1 else round(share), word)
            self.draft.differs.append(
                Note(word, share, "held-out records are chosen by their hash, not drawn at random")
            )


def hub(name: str, config: str | None = None, split: str | None = None) -> str:
    """The name that data.train has for a data set of Hugging Face's hub."""
    if config and config != "default":
        return f"hub:{name}:{config}:{split or 'train'}"
    return f"hub:{name}:{split}" if split and split != "train" else f"hub:{name}"


def modelscope(name: str, subset: str | None = None, split: str | None = None) -> str:
    """The name that data.train has for a data set of ModelScope."""
    return ":".join(["ms:" + name, *filter(None, (subset if subset != "default" else None, split))])


def is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def turn_names(
    messages: str | None, role: str | None, content: str | None, tags: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(columns, roles) of records with turns: only the names that zlaunch does not know by itself.

    `tags`: {our role: the data's name or names for it}.
    """
    columns: dict[str, Any] = {}
    if messages and messages not in TURN_LISTS:
        columns["messages"] = messages
    if role and role not in ROLE_KEYS:
        columns["role"] = role
    if content and content not in CONTENT_KEYS:
        columns["content"] = content
    roles: dict[str, Any] = {}
    for ours, theirs in tags.items():
        named = [theirs] if isinstance(theirs, str) else list(theirs or ())
        strange = [name for name in named if name not in _ROLES.get(ours, ())]
        if strange:
            roles[ours] = strange[0] if len(strange) == 1 else strange
    return columns, roles


def pair_names(names: Mapping[str, str | None]) -> dict[str, Any]:
    """data.columns of records with a question and an answer, without what is named so already."""
    return {ours: theirs for ours, theirs in names.items() if theirs and theirs != ours}

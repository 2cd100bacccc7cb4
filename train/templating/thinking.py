"""What a chat template says about thoughts: the form that a run saved, and thoughts in the contents of answers.

A template that asks otherwise than the model was trained gets another form (generation_prompt.py). The form is the
model's own template between two pieces of Jinja. A comment in the first one names the mode.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from train.records.conversation import Details
from train.templating.turn_layout import Turns

Mode = Literal["on", "off"]
"""on: answers begin with thoughts. off: they have none."""

_SAYS: dict[Mode | None, str] = {
    "on": "the model was trained to think before it answers (thinking: on)",
    "off": "the model was trained to answer without thoughts (thinking: off)",
    None: "what invites an answer is what stood before answers in training",
}
_HEAD = "{# zlaunch: this template asks as in training; %s. #}"
_OWN = "{# zlaunch: the model's own template: #}"
_TAIL = "{# zlaunch: the end of the model's own template #}"
_MODE = re.compile(r"\A\{# zlaunch: this template asks as in training; [^#]*?(?:\(thinking: (on|off)\))?\. #\}")
_SAVED = re.compile(f"{re.escape(_OWN)}(?:\\{{\\{{ '' \\}}\\}})?(.*?)(?:{re.escape(_TAIL)}|\\Z)", re.DOTALL)
_CLOSING_TAG = re.compile(r"[<\[◁|].{0,3}/.{0,12}think.{0,4}[>\]▷|]", re.IGNORECASE)
DEFAULT_TAGS = ("<think>", "</think>")


def mode_of(template: str) -> Mode | None:
    """The mode of a saved form; None for any other template."""
    found = _MODE.match(template)
    return found[1] if found and found[1] else None  # type: ignore[return-value]


def is_form(template: str) -> bool:
    """Whether the template is a saved form."""
    return _MODE.match(template) is not None


def form(own: str, mode: Mode | None, before: str = "", after: str = "") -> str:
    """The model's own template with Jinja before and after it, and a comment that says so."""
    blank = "{{ '' }}" if own[:1].isspace() else ""  # after a comment or block, Jinja drops a line break
    own = own.removesuffix("\n")  # as Jinja does at the end of a template
    if after:
        after = f"{_TAIL}{after}"
    return f"{_HEAD % _SAYS[mode]}{before}{_OWN}{blank}{own}{after}"


def own_part(template: str) -> str:
    """The model's own template in a saved form; any other template as it is."""
    found = _SAVED.search(template) if _MODE.match(template) else None
    return found[1] if found else template


def tags(searched: Collection[str]) -> tuple[str, str]:
    """(begin, end) of thoughts in contents, by the texts that the template searches for."""
    closing = next((text for text in searched if _CLOSING_TAG.fullmatch(text)), DEFAULT_TAGS[1])
    return closing.replace("/", "", 1), closing


def split(content: str, around: tuple[str, str]) -> tuple[str, str] | None:
    """(thoughts, answer) of a content that begins with thoughts; their first tag may be missing."""
    opening, closing = around
    thoughts, found, answer = content.partition(closing)
    if not found:
        return None
    before, opened, inside = thoughts.partition(opening)
    if opened and before.strip():  # the tag stands in the middle of the answer
        return None
    return (inside if opened else thoughts), answer


def has_thoughts(messages: Turns, details: Details | None, around: tuple[str, str]) -> bool:
    fields: Mapping[int, Mapping[str, Any]] = details.fields if details is not None else {}
    if any(found.get("reasoning_content") for found in fields.values()):
        return True
    return any(role == "assistant" and around[1] in text and split(text, around) for role, text in messages)


def without_thoughts(
    messages: Turns, details: Details | None, around: tuple[str, str]
) -> tuple[Turns, Details | None, list[str]]:
    """The conversation without thoughts, and these."""
    kept, dropped = [], []
    for role, text in messages:
        found = split(text, around) if role == "assistant" else None
        if found is not None:
            dropped.append(found[0].strip())
            text = found[1].lstrip()
        kept.append((role, text))
    if details is not None and details.fields:
        fields: dict[int, dict[str, Any]] = {}
        for place, values in details.fields.items():
            dropped += [str(values["reasoning_content"])] if values.get("reasoning_content") else []
            rest = {key: value for key, value in values.items() if key != "reasoning_content"}
            fields |= {place: rest} if rest else {}
        details = Details(details.tools, fields, details.untrained)
    return kept, details, dropped

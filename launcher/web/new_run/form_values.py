"""What a form holds becomes a job, by the parser and with the errors of a job file; and the other way round.

Each field is read and checked by itself first, so that its error stands beside it, and all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.errors import SpecError, UsageError
from launcher.job import notify_address, yamlfile
from launcher.job.explain import Refusal, known_keys
from launcher.job.load import checked, put, wants_text
from launcher.job.paths import with_absolute_paths
from launcher.job.spec import JobSpec
from launcher.machine.language.bilingual import both
from launcher.web.new_run.schema_form import Field, as_text, fields

HERE = "the form"


@dataclass(frozen=True)
class Problem:
    """An error, at a field or (empty key) of the whole job."""

    key: str
    message: str
    hint: str | None = None

    def sent(self) -> dict[str, Any]:
        """As the page shows it, in both languages; `fixes`: {key: text of its field} that its advice names."""
        (message, message_zh), (hint, hint_zh) = both(self.message), both(self.hint or "")
        fixes = {key: text for key, text in _FIXES.findall(f"{message}\n{hint}") if key in fields()}
        return {
            "key": self.key,
            "message": message,
            "message_zh": message_zh,
            "hint": hint,
            "hint_zh": hint_zh,
            "fixes": fixes,
        }


_FIXES = re.compile(
    r"(?<![\w.])([a-z_]+(?:\.[a-z_]+)+)(?: could be |=|: )(\{[^{}]*\}|[\w.]+)(?=$|[\s,;])", re.MULTILINE
)
"""`data.columns could be {...}`, `set data.on_error=skip`, `set train.engine: auto`."""


@dataclass(frozen=True)
class Filled:
    """A form that was read."""

    tree: dict[str, Any]
    """The content of a job file, with absolute paths."""
    spec: JobSpec | None
    """None: there are problems."""
    problems: tuple[Problem, ...]


def job_of(values: Mapping[str, str], base: Path) -> Filled:
    """Read {key: text of its field}; relative paths are relative to `base`.

    An empty field and a choice that is the default's are not part of the job.
    """
    given: dict[str, Any] = {}
    problems: list[Problem] = []
    order = {key: number for number, key in enumerate(fields())}
    for key in sorted(values, key=lambda key: order.get(key, -1)):
        field, text = fields().get(key), values[key]
        if field is not None and (not text.strip() or (field.kind in ("choice", "switch") and text == field.default)):
            continue
        try:
            given[key] = _absolute(key, text if field is None else value_of(field, text), base)
        except SpecError as error:
            problems.append(at_field(error, key))
    while True:  # what is refused is left out, so that the next refusal is found
        try:
            tree = _tree(given)
            spec = checked(notify_address.take_out(tree, (), HERE)[0])
            return Filled(tree, None if problems else spec, tuple(problems))
        except SpecError as error:
            problem = at_field(error, error.key if isinstance(error, Refusal) else "")
            refused = [key for key in given if f"{problem.key}.".startswith(f"{key}.")]
            problems.append(replace(problem, key=refused[0]) if refused else problem)
            if not refused:
                return Filled(_tree(given), None, tuple(problems))
            del given[refused[0]]


def _absolute(key: str, value: Any, base: Path) -> Any:
    """The value with its paths made absolute. Raises SpecError."""
    tree: Any = with_absolute_paths(_tree({key: value}), base)
    for name in key.split("."):
        tree = tree[name]
    return tree


def _tree(given: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in given.items():
        put(tree, key, value, where=key)
    return tree


def value_of(field: Field, text: str) -> Any:
    """The value that a job file would hold. Raises SpecError."""
    if reason := yamlfile.unusable(text):
        raise SpecError(f"{field.key}: {reason}")
    if field.kind == "lines":
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if field.single and len(lines) == 1 and lines[0].startswith("[") and lines[0].endswith("]"):
            return yamlfile.loads(lines[0], where=field.key)
        if field.single and len(lines) == 1 and not (field.mapped and lines[0].startswith("{")):
            return lines[0]
        return [_entry(field, line) for line in lines]
    if field.kind in ("word", "text"):
        return text.strip() if field.kind == "word" else text
    return yamlfile.loads(text, where=field.key, key=field.key, is_text=wants_text)


def _entry(field: Field, line: str) -> Any:
    return yamlfile.loads(line, where=field.key) if field.mapped and line.startswith("{") else line


def at_field(error: UsageError, key: str = "") -> Problem:
    """The error at the field that it names first, by default that of `key`."""
    message = str(error).removeprefix(f"{HERE}: ")
    for name in re.findall(r"[a-z_]+(?:\.[a-z_]+)+|^[a-z_]+(?=: )", message):
        if not key and name in known_keys() and name in fields():
            key = name
    return Problem(key, message.removeprefix(f"{key}: "), error.hint)


def values_of(tree: Mapping[str, Any]) -> dict[str, str]:
    """What the form holds for a job: {key: text} of what the job says. Raises UsageError for what no form can hold."""
    if tree.get("program"):
        raise UsageError("the job runs a program of its own, which the form cannot start", code="ZL-WEB-01")
    found = {}
    for key, field in fields().items():
        value: Any = tree
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is None:
            continue
        text = found[key] = as_text(field.kind, value, single=field.single)
        if field.kind == "lines" and value_of(field, text) != (list(value) if isinstance(value, tuple) else value):
            raise UsageError(
                f"{key}: the form cannot hold {value!r}", hint="start the job from its file", code="ZL-WEB-01"
            )
    return found

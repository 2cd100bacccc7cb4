"""Unknown keys and wrong types of a job file, in words for people."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import msgspec

from launcher.errors import SpecError
from launcher.job.spec import JobSpec
from train.config import Source


class Refusal(SpecError):
    """What is wrong with the value of `key`; who knows where it was given puts that before it."""

    def __init__(self, key: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{key or 'the job'}: {message}", hint=hint)
        self.key = key


def check_keys(tree: Mapping[str, Any], *, where: str) -> None:
    """Raise SpecError for the first unknown key, naming the nearest known one."""
    known = known_keys()
    for key in _keys(tree):
        if key not in known and not _open_ended(key):
            nearest = _nearest(key, known)
            section = key.rpartition(".")[0]
            siblings = sorted(k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section)
            hint = f"did you mean `{nearest}`?" if nearest else f"known here: {', '.join(siblings)}"
            raise SpecError(f"{where}: unknown key `{key}`", hint=hint)


def known_keys() -> dict[str, Any]:
    """Every dotted key of a job and its type."""
    found: dict[str, Any] = {}

    def walk(struct: type[msgspec.Struct], prefix: str) -> None:
        for info in msgspec.structs.fields(struct):
            found[prefix + info.name] = info.type
            if isinstance(info.type, type) and issubclass(info.type, msgspec.Struct):
                walk(info.type, f"{prefix}{info.name}.")

    walk(JobSpec, "")
    return found


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict) and not _open_ended(f"{prefix}{key}."):
            yield from _keys(value, f"{prefix}{key}.")


def _open_ended(key: str) -> bool:
    return key.startswith(("env.", "slurm.sbatch.", "data.train.", "data.eval."))


def _nearest(key: str, known: Mapping[str, Any]) -> str | None:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if not close:  # the right word in the wrong section
        last = key.rpartition(".")[2]
        by_last = {k.rpartition(".")[2]: k for k in known}
        close = [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1, cutoff=0.75)]
    return close[0] if close else None


def explain(message: str, tree: Mapping[str, Any]) -> Refusal:
    """msgspec's "Expected `int`, got `str` - at `$.train.epochs`" in the words of a job file."""
    path = re.findall(r"\w+|\[.*?\]", message.rpartition("`$")[2])
    key = ".".join(part for part in path if part[0] != "[")
    if unknown := re.match(r"Object contains unknown field `(.*?)`", message):
        # of a source: check_keys has seen all others
        near = difflib.get_close_matches(unknown[1], Source.__struct_fields__, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(Source.__struct_fields__)}"
        return Refusal(key, f"unknown key `{unknown[1]}`", hint=hint)
    if missing := re.match(r"Object missing required field `(.*?)`", message):
        return Refusal(key, f"an entry has no `{missing[1]}`", hint=f"each is a text or {_words(Source)[0]}")
    if " - at `key` in " in message:
        return Refusal(key, "a name here is no text", hint="put it in quotes")
    kind, value = {**known_keys(), **_SOURCE_KEYS}.get(key), _value_at(path, tree)
    if path and path[-1][0] == "[":
        kind = _entry_of(kind)
    if path and path[-1] == "[...]":
        name, value = next((name, entry) for name, entry in value.items() if not _fits(entry, kind))
        key = f"{key}.{name}"
    accepted = ", ".join(_words(kind))
    return Refusal(key, f"{_shown(key, value)} cannot stand here" + (f"; accepted: {accepted}" if accepted else ""))


_SOURCE_KEYS = {
    f"data.{part}.{info.name}": info.type for part in ("train", "eval") for info in msgspec.structs.fields(Source)
}


def _value_at(path: Iterable[str], value: Any) -> Any:
    for part in path:
        if part[0] != "[":
            value = value.get(part) if isinstance(value, dict) else None
        elif part != "[...]":
            value = value[int(part[1:-1])]
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value, with numbers as texts, is of a type."""
    try:
        msgspec.convert(str(value) if isinstance(value, (bool, int, float)) else value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _shown(key: str, value: Any) -> str:
    """A value as a job file has it; of what may be secret only the kind."""
    if key.partition(".")[0] in ("secrets", "env"):
        return kind_of(value)
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true, false", NoneType: "null"}


def _words(kind: Any) -> list[str]:
    """What a key of this type accepts."""
    if kind in _WORDS:
        return [_WORDS[kind]]
    if is_section(kind):
        return [f"a mapping like {{{', '.join(f'{name}: ...' for name in kind.__struct_fields__[:2])}}}"]
    origin, options = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [str(option) for option in options]
    if origin is tuple:
        return ["a list like [a, b]"]
    if origin is dict:
        return ["a mapping like {name: value}"]
    return [word for option in options for word in _words(option)]


def _entry_of(kind: Any) -> Any:
    """The type of the entries of a list or a mapping, where `kind` accepts one."""
    if get_origin(kind) in (tuple, dict):
        return [option for option in get_args(kind) if option is not Ellipsis][-1]
    return next((found for option in get_args(kind) if (found := _entry_of(option)) is not None), None)


def kind_of(value: Any) -> str:
    names = {"dict": "a mapping", "list": "a list", "str": "a text", "NoneType": "null", "bool": "a truth value"}
    return names.get(type(value).__name__, "a number")

"""What is wrong with a job: unknown keys, missing keys and wrong types, each with its exact place."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from launcher.errors import SpecError
from launcher.job.spec import AboutNumber, JobSpec


class Refusal(SpecError):
    """What is wrong at one place of a job, such as `data.train[1].weight`. The caller adds where that was given."""

    def __init__(self, place: str, message: str, *, hint: str | None = None, unknown: bool = False) -> None:
        super().__init__(message if unknown else f"{place or 'the job'}: {message}", hint=hint)
        self.place = place
        self.key = re.sub(r"\[\d+\]", "", place)


@functools.cache
def known_keys() -> Mapping[str, Any]:
    """Every dotted key of a job and its type."""
    found: dict[str, Any] = {}

    def walk(struct: type[msgspec.Struct], prefix: str) -> None:
        for info in msgspec.structs.fields(struct):
            found[prefix + info.name] = info.type
            if is_section(info.type):
                walk(info.type, f"{prefix}{info.name}.")

    walk(JobSpec, "")
    return found


def known_choices() -> dict[str, list[str]]:
    """Every dotted key of a job that has a value of its own, and the values that its type names."""
    return {key: _named(kind) for key, kind in known_keys().items() if not is_section(kind)}


def _named(kind: Any) -> list[str]:
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(option) for option in get_args(kind)]
    if get_origin(kind) in (Union, UnionType):
        return [choice for option in get_args(kind) for choice in _named(option)]
    return ["auto"] if kind == AboutNumber else []


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _unknown(place: str, name: str, siblings: Iterable[str]) -> Refusal:
    """An unknown key, with what it means or was meant to be as a hint."""
    from launcher.job.reference import unknown_words

    prefix = f"{place}." if place else ""
    hint = unknown_words.hint(name, place, list(siblings), known_keys())
    return Refusal(prefix + name, f"unknown key `{prefix}{name}`", hint=hint, unknown=True)


def value_hint(key: str, value: Any) -> str | None:
    """What a value of other programs is here."""
    from launcher.job.reference import peer_words

    word = str(value).lower() if isinstance(value, (str, bool, int)) else "null" if value is None else ""
    ours = peer_words.VALUES.get(key, {}).get(word)
    return f"did you mean `{ours}`?" if ours else None


def refusals(value: Any, kind: Any = JobSpec, place: str = "") -> Iterator[Refusal]:
    """Everything in `value` that the type `kind` does not accept."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    form = next((option for option in options if _has_form(value, option)), None)
    if form is None:
        if not _fits(value, kind):
            hint = value_hint(place, value)
            yield Refusal(place, f"expected {_any_of(options)}, got {_shown(place, value)}", hint=hint)
    elif is_section(form):
        yield from _in_section(value, form, place)
    elif get_origin(form) is tuple:
        for number, entry in enumerate(value):
            yield from refusals(entry, get_args(form)[0], f"{place}[{number}]")
    else:
        for name, entry in value.items():
            if isinstance(name, str):
                yield from refusals(entry, get_args(form)[1], f"{place}.{name}")
            else:
                yield Refusal(place, f"expected a string as a name, got {type_name(name)}", hint="put it in quotes")


def _in_section(tree: Mapping[str, Any], struct: type[msgspec.Struct], place: str) -> Iterator[Refusal]:
    fields = {info.name: info for info in msgspec.structs.fields(struct)}
    for name, value in tree.items():
        if name in fields:
            yield from refusals(value, fields[name].type, f"{place}.{name}" if place else name)
        else:
            yield _unknown(place, str(name), fields)
    for name, info in fields.items():
        if info.required and name not in tree:
            yield Refusal(place, f"missing key `{name}`", hint=f"expected {_any_of((struct,))}")


def _has_form(value: Any, kind: Any) -> bool:
    """Whether a list or a mapping is what the type is made of; its entries may still be wrong."""
    if isinstance(value, dict):
        return is_section(kind) or get_origin(kind) is dict
    return isinstance(value, (list, tuple)) and get_origin(kind) is tuple


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        return False
    return True


_WORDS = {str: "a string", int: "a whole number", float: "a number", NoneType: "null"}


def _any_of(options: Iterable[Any]) -> str:
    """What the types accept, as in `true, false or auto`."""
    words: list[str] = []
    for kind in options:
        if kind is bool:
            words += ["true", "false"]
        elif get_origin(kind) is Literal:
            words += [str(option) for option in get_args(kind)]
        elif get_origin(kind) is Annotated:
            words.append(kind.__metadata__[0].description)
        elif is_section(kind):
            words.append(f"a mapping like {{{', '.join(f'{name}: ...' for name in kind.__struct_fields__[:2])}}}")
        elif get_origin(kind) is tuple:
            words.append("a list like [a, b]")
        else:
            words.append(_WORDS.get(kind, "a mapping like {name: value}"))
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _shown(place: str, value: Any) -> str:
    """A value as a job file has it. Of what may be secret, and of lists and mappings, only the type."""
    if isinstance(value, (list, dict)) or place.startswith(("secrets", "env", "notify")):
        return type_name(value)
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def type_name(value: Any) -> str:
    names = {"dict": "a mapping", "list": "a list", "str": "a string", "NoneType": "null", "bool": "true or false"}
    return names.get(type(value).__name__, "a number")

"""Every key of a job with all that is known of it: the source of every reference."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec

from launcher.job import yamlfile
from launcher.job.explain import is_section
from launcher.job.ranges import JOB_RANGES
from launcher.job.reference.key_table import PEERS, ROWS, Row
from launcher.job.spec import JobSpec, TrainSpec
from train.config import Range, Training

SAME_AS = {TrainSpec: Training}
"""The text of a key that a section does not describe itself is that of the same key there."""
NO_ROW = Row("", "", "")


class Peer(NamedTuple):
    """A name that other programs have for a key."""

    name: str
    """As these programs write it: `num_epochs`, or an option with its dashes."""
    programs: tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """A key of a job that takes a value."""

    name: str
    """Dotted, as in `train.epochs`."""
    kind: Any
    """Its type in the schema."""
    default: Any
    range: Range | None
    """Of its numbers."""
    text: str
    """What it means, in English."""
    row: Row

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def last(self) -> str:
        """The name without its section."""
        return self.name.rpartition(".")[2]

    @property
    def label(self) -> str:
        word = self.last.replace("_", " ")
        return self.row.label or word[0].upper() + word[1:]

    @property
    def type(self) -> str:
        """In words, with the accepted values: `none, nf4, int8 or fp8`."""
        return in_words(self.kind)

    @property
    def accepted(self) -> str:
        """Its type and its range: `whole number or auto, at least 1`."""
        return f"{self.type}, {self.range}" if self.range else self.type

    @property
    def default_text(self) -> str:
        """As a job file has it, on one line."""
        return value_text(self.default)

    @property
    def peers(self) -> tuple[Peer, ...]:
        found = [entry.split() for entry in self.row.peers.split(";") if entry.strip()]
        return tuple(Peer(name, tuple(programs)) for name, *programs in found)

    @property
    def peers_text(self) -> str:
        """`num_train_epochs (Transformers), num_epochs (axolotl)`."""
        return ", ".join(
            f"{peer.name} ({', '.join(PEERS.get(program, program) for program in peer.programs)})"
            for peer in self.peers
        )


@functools.cache
def keys() -> dict[str, Key]:
    """{dotted key: all that is known of it}, in the order of the schema."""
    return {key.name: key for key in _keys(JobSpec, "")}


def _keys(section: type[msgspec.Struct], prefix: str) -> Iterator[Key]:
    texts = texts_of(section)
    for info in msgspec.structs.fields(section):
        name = prefix + info.name
        if is_section(info.type):
            yield from _keys(info.type, f"{name}.")
            continue
        default = info.default_factory() if info.default is msgspec.NODEFAULT else info.default
        text, row = texts.get(info.name, ""), ROWS.get(name, NO_ROW)
        yield Key(name, info.type, default, JOB_RANGES.get(name), text, row)


def texts_of(section: type[msgspec.Struct]) -> dict[str, str]:
    """{key: the text below it} of a section: what the schema says of its keys."""
    texts = texts_of(SAME_AS[section]) if section in SAME_AS else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(after, ast.Expr):
            value = after.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[before.target.id] = " ".join(value.value.split())
    return texts


def options_of(kind: Any) -> tuple[Any, ...]:
    """The types of a union, without null; of another type, itself."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(one for one in options if one is not NoneType)


def choices_of(kind: Any) -> list[str]:
    """The values that a type names: of `Literal["a", "b"] | bool`, a, b, true and false."""
    words: list[str] = []
    for one in options_of(kind):
        words += [str(option) for option in get_args(one)] if get_origin(one) is Literal else []
    return words


_WORDS = {str: "text", int: "whole number", float: "number"}


def in_words(kind: Any) -> str:
    """A type in words: `whole number or auto`."""
    words: list[str] = []
    for one in options_of(kind):
        if one is bool:
            words += ["true", "false"]
        elif get_origin(one) is Literal:
            words += [str(option) for option in get_args(one)]
        elif get_origin(one) is Annotated:
            words.append(one.__metadata__[0].description.removeprefix("auto, "))
            words += ["auto"] if one.__metadata__[0].description.startswith("auto, ") else []
        elif get_origin(one) is tuple:
            words.append("list")
        else:
            words.append(_WORDS.get(one, "mapping"))
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def value_text(value: Any) -> str:
    """A value as a job file has it, on one line."""
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return f"{Decimal(repr(value)):e}"  # 2e-4
    return yamlfile.dumps(list(value) if isinstance(value, tuple) else value, flow=True).removesuffix("\n...")


def range_in_chinese(accepted: Range) -> str:
    """`至少 1` of `at least 1`."""
    chinese = str(accepted).replace("at least ", "至少 ").replace("above ", "大于 ").replace(", at most ", "，至多 ")
    return chinese.replace(" to ", " 至 ")


def accepted_in_chinese(key: Key) -> str:
    """`整数 或 auto，至少 1`."""
    words = [_CHINESE.get(word, word) for word in key.type.replace(" or ", ", or, ").split(", ")]
    kind = "、".join(words).replace("、或、", " 或 ")
    return f"{kind}，{range_in_chinese(key.range)}" if key.range else kind


_CHINESE = {"text": "文本", "whole number": "整数", "number": "数", "list": "列表", "mapping": "映射", "or": "或"}

"""Read YAML 1.2: refuse duplicate keys, and name file, line and column in errors.

PyYAML reads YAML 1.1, where `04:00:00` is the number 14400, `no` is false and `2e-4` is a string. Job files contain all
three, so this loader resolves scalars by the core schema of YAML 1.2. It has limits, since job files come from others:
a short text whose aliases expand to gigabytes must be an error, and a quick one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import SpecError

LARGEST_TEXT = 1 << 17
"""Characters. PyYAML reads about 100,000 a second."""
LARGEST_TREE = 20_000
"""Values, those behind aliases counted each time."""
DEEPEST = 50
LONGEST_NUMBER = 1000
"""Characters."""


class Repeated(SpecError):
    """Keys that stand twice in one mapping. `value` is what was read, with the last of each."""

    def __init__(self, where: str, repeated: list[tuple[str, Any]], value: Any) -> None:
        self.lines = [
            (f"{where}, line {mark.line + 1}, column {mark.column + 1}", f"duplicate key {key!r}")
            for key, mark in repeated
        ]
        self.value = value
        super().__init__("\n  ".join(": ".join(line) for line in self.lines), hint="remove all but one")


class _CoreLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.sizes: dict[int, int] = {}
        """Values in each finished node, by id."""
        self.repeated: list[tuple[str, Any]] = []
        """Keys that stand twice in one mapping, and where the second one stands."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError("", None, f"nested more than {DEEPEST} levels deep", mark)
        node: Any = super().compose_node(parent, index)
        self.depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self.sizes[id(node)] = 1 + sum(self.sizes[id(child)] for child in _children(node))
        elif id(node) not in self.sizes:
            raise yaml.MarkedYAMLError("", None, f"*{event.anchor} stands inside of &{event.anchor}", mark)
        if self.sizes[id(node)] > LARGEST_TREE:
            raise yaml.MarkedYAMLError("", None, f"expands to more than {LARGEST_TREE:,} values", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):  # `!!map [a]`
            raise yaml.MarkedYAMLError("", None, "not a value of type map", node.start_mark)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)):
                raise yaml.MarkedYAMLError("", None, "a key must be a plain scalar", key_node.start_mark)
            if key in seen:
                self.repeated.append((str(key), key_node.start_mark))
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if reason := unusable(value):
            raise yaml.MarkedYAMLError("", None, reason, node.start_mark)
        return value

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError) as error:  # `!!int abc`, `!!bool maybe`
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError("", None, f"not a value of type {kind}", node.start_mark) from error


_CORE = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
)


class _CoreDumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.2 or 1.1 reads as something else."""


for _tag, _pattern, _first in _CORE:
    for _kind in (_CoreLoader, _CoreDumper):
        _kind.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])


def _construct_int(loader: _CoreLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > LONGEST_NUMBER:
        raise yaml.MarkedYAMLError("", None, f"a number of {len(text):,} characters", node.start_mark)
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


_CoreLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def dumps(value: Any, *, flow: bool = False) -> str:
    """The text of a value, which `loads` reads back. `flow`: on one line, as in `{path: a, weight: 2}`."""
    width = float("inf") if flow else None
    text: str = yaml.dump(
        value, Dumper=_CoreDumper, default_flow_style=flow, allow_unicode=True, sort_keys=False, width=width
    )
    return text.rstrip("\n") if flow else text


def unusable(text: Any) -> str | None:
    """Why a string can be no value of a job; None if it can be one."""
    if "\0" in text:
        return "a text cannot contain a NUL character"
    if any("\ud800" <= char <= "\udfff" for char in text):
        return "a text cannot contain half of a surrogate pair, or bytes that are not UTF-8"
    return None


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


_OF_A_VALUE = "write lists as [a, b], mappings as {a: b}; quote a string that contains YAML characters"
_OF_A_FILE = "look there and above for an open bracket or quote, a tab, a wrong indent, or an unquoted `: `"


def loads(
    text: str, *, where: str, hint: str = _OF_A_VALUE, key: str = "", is_text: Callable[[str], bool] = lambda _: False
) -> Any:
    """Parse `text`, the value of `key`. `where` names its origin in errors, and `hint` says how to repair it.

    A plain scalar of a key for which `is_text` holds stays as it is written: `3.10` does not become 3.1, nor `007` 7.
    Raises SpecError.
    """
    if len(text) > LARGEST_TEXT:
        raise SpecError(
            f"{where}: more than {LARGEST_TEXT:,} characters",
            hint="put records and long texts into files",
            code="ZL-JOB-02",
        )
    try:
        loader = _CoreLoader(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(_with_texts(node, key, is_text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise SpecError(f"{place}: not valid YAML: {error.problem}", hint=hint, code="ZL-JOB-02") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: not valid YAML: {error}", hint=hint, code="ZL-JOB-02") from error
    if loader.repeated:
        raise Repeated(where, loader.repeated, value)
    return value


_NO_NULL = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _with_texts(node: yaml.Node, key: str, is_text: Callable[[str], bool]) -> yaml.Node:
    """The node with numbers, true and false as strings where the key wants a text."""
    if isinstance(node, yaml.ScalarNode) and node.tag in _NO_NULL and node.style is None and is_text(key):
        # a new node: others may share this one by an alias
        return yaml.ScalarNode("tag:yaml.org,2002:str", node.value, node.start_mark, node.end_mark)
    if isinstance(node, yaml.MappingNode):
        prefix = f"{key}." if key else ""
        node.value = [(name, _with_texts(value, f"{prefix}{name.value}", is_text)) for name, value in node.value]
    if isinstance(node, yaml.SequenceNode):  # the values of a sweep
        node.value = [_with_texts(value, key, is_text) for value in node.value]
    return node


def lines(path: Path) -> dict[str, int]:
    """{place in a file, such as `data.train[1].weight`: its line, from 1}; empty if the file cannot be read."""
    found: dict[str, int] = {}

    def walk(node: yaml.Node, place: str, depth: int = 0) -> None:
        if isinstance(node, yaml.MappingNode) and depth < DEEPEST:
            for name, value in node.value:
                inner = f"{place}.{name.value}" if place else str(name.value)
                found[inner] = name.start_mark.line + 1
                walk(value, inner, depth + 1)
        elif isinstance(node, yaml.SequenceNode) and depth < DEEPEST:
            for number, value in enumerate(node.value):
                found[f"{place}[{number}]"] = value.start_mark.line + 1
                walk(value, f"{place}[{number}]", depth + 1)

    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        node = _CoreLoader(path.read_text(encoding="utf-8-sig")).get_single_node()
        if node is not None:
            walk(node, "")
    return found


def load(path: Path, *, is_text: Callable[[str], bool] = lambda _: False) -> Any:
    """Parse a UTF-8 file. Raises SpecError for a file that cannot be read or is not YAML."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(LARGEST_TEXT + 1)
    except FileNotFoundError as error:
        raise SpecError(
            f"no such job file: {path}", hint="`zlaunch init` writes a commented job.yaml", code="ZL-JOB-02"
        ) from error
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path}: not UTF-8 (byte {error.start}: {error.reason})", hint="save it as UTF-8", code="ZL-JOB-02"
        ) from error
    except OSError as error:
        raise SpecError(f"cannot read the job file {path}: {error.strerror}", code="ZL-JOB-02") from error
    return loads(text, where=str(path), hint=_OF_A_FILE, is_text=is_text)

"""Read YAML 1.2: refuse duplicate keys, and name file, line and column in errors.

PyYAML reads YAML 1.1, where `04:00:00` is the number 14400, `no` is false and `2e-4` is a string. Job files contain all
three, so this loader resolves scalars by the core schema of YAML 1.2.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import SpecError


class _CoreLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)):
                raise yaml.MarkedYAMLError("", None, "a key must be a plain scalar", key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError("", None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


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
for _tag, _pattern, _first in _CORE:
    _CoreLoader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])


def _construct_int(loader: _CoreLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


_CoreLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


_OF_A_VALUE = "write lists as [a, b], mappings as {a: b}; quote a string that contains YAML characters"
_OF_A_FILE = "look there and above for an open bracket or quote, a tab, a wrong indent, or an unquoted `: `"


def loads(text: str, *, where: str, hint: str = _OF_A_VALUE) -> Any:
    """Parse `text`. `where` names its origin in errors, and `hint` says how to repair it. Raises SpecError."""
    try:
        return yaml.load(text, Loader=_CoreLoader)  # a SafeLoader with other scalar rules
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise SpecError(f"{place}: not valid YAML: {error.problem}", hint=hint) from error
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: not valid YAML: {error}", hint=hint) from error


def load(path: Path) -> Any:
    """Parse a UTF-8 file. Raises SpecError for a file that cannot be read or is not YAML."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SpecError(f"no such job file: {path}", hint="`zlaunch init` writes a commented job.yaml") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 (byte {error.start}: {error.reason})", hint="save it as UTF-8") from error
    except OSError as error:
        raise SpecError(f"cannot read the job file {path}: {error.strerror}") from error
    return loads(text, where=str(path), hint=_OF_A_FILE)

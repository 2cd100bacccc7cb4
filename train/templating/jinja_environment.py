"""The Jinja environment of chat templates, as in transformers (utils/chat_template_utils.py), without importing it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

OPEN, CLOSE = "\u2063zl(", ")zl\u2063"
"""Marks around text of `{% generation %}` blocks and around numbers in probes. No record holds them."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: put the block's text between marks, on request."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        return f"{OPEN}{text}{CLOSE}" if self.environment.globals["zlaunch_generation"] else text


def environment() -> ImmutableSandboxedEnvironment:
    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    made.globals["zlaunch_generation"] = False
    return made


_SEARCHES = frozenset(
    {"startswith", "endswith", "split", "rsplit", "partition", "rpartition", "replace", "find", "count"}
)
_KEYS_OF_MESSAGES = frozenset({"role", "content", "name", "tool_calls", "reasoning_content", "thinking", "tools"})
"""`'tool_calls' in message` asks for a key, not for a text."""


def searched_texts(tree: jinja2.nodes.Template) -> set[str]:
    """The texts that a template searches for: `'x' in y`, `y.split('x')`, `y | replace('x', ...)`."""
    found: set[str] = set()
    for compare in tree.find_all(jinja2.nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compare.ops):
            found |= _constants([compare.expr])
    for call in tree.find_all(jinja2.nodes.Call):
        if isinstance(call.node, jinja2.nodes.Getattr) and call.node.attr in _SEARCHES:
            found |= _constants(call.args)
    for used in tree.find_all(jinja2.nodes.Filter):
        if used.name == "replace":
            found |= _constants(used.args)
    return found - _KEYS_OF_MESSAGES


def _constants(nodes: Any) -> set[str]:
    values = (node.value for node in nodes if isinstance(node, jinja2.nodes.Const))
    return {value for value in values if isinstance(value, str) and value}


def all_constants(tree: jinja2.nodes.Template) -> set[str]:
    """Every text constant of a template's expressions."""
    return _constants(tree.find_all(jinja2.nodes.Const))

"""Ollama's rendering of a Modelfile: the parser's rules, and the part of Go's text/template that our Modelfiles use.

Where Go is installed, Go itself renders (`by_go`), and a test holds that both agree.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

Turns = list[tuple[str, str]]


def template_of(modelfile: str) -> str:
    """The TEMPLATE of a Modelfile, without the characters that its parser drops."""
    text = re.search(r'^TEMPLATE """(.*?)"""$', modelfile, re.M | re.S)
    assert text is not None
    return "".join(c for c in text[1] if c.isprintable() or c == "\n")


def values(turns: Turns) -> dict[str, Any]:
    """What Ollama gives a template: consecutive messages of a role are one."""
    joined: list[dict[str, str]] = []
    for role, text in turns:
        if joined and joined[-1]["Role"] == role:
            joined[-1]["Content"] += f"\n\n{text}"
        else:
            joined.append({"Role": role, "Content": text})
    return {"System": "\n\n".join(text for role, text in turns if role == "system"), "Messages": joined}


def render(template: str, turns: Turns) -> str:
    pieces = re.split(r"\{\{(.*?)\}\}", template, flags=re.S)
    nodes, rest = _parse(pieces, 0)
    assert rest == len(pieces)
    return _run(nodes, values(turns))


def _parse(pieces: list[str], at: int) -> tuple[list[Any], int]:
    """Nodes up to the end or the action that closes this block."""
    nodes: list[Any] = []
    while at < len(pieces):
        if at % 2 == 0:
            nodes.append(pieces[at])
            at += 1
            continue
        action = pieces[at].strip()
        if action == "end" or action.startswith("else"):
            break
        if action.startswith("range "):
            body, at = _parse(pieces, at + 1)
            nodes.append(("range", action[6:].strip(), body))
            assert pieces[at].strip() == "end"
        elif action.startswith("if "):
            branches, condition = [], action[3:]
            while True:
                body, at = _parse(pieces, at + 1)
                branches.append((condition, body))
                closing = pieces[at].strip()
                if closing == "end":
                    break
                condition = closing.removeprefix("else").strip().removeprefix("if").strip()
            nodes.append(("if", branches))
        else:
            nodes.append(("value", action))
        at += 1
    return nodes, at


def _run(nodes: list[Any], data: Any) -> str:
    found = ""
    for node in nodes:
        if isinstance(node, str):
            found += node
        elif node[0] == "value":
            found += str(_value(node[1], data))
        elif node[0] == "range":
            found += "".join(_run(node[2], item) for item in _value(node[1], data))
        else:
            chosen = (body for condition, body in node[1] if not condition or _value(condition, data))
            found += _run(next(chosen, []), data)
    return found


def _value(expression: str, data: Any) -> Any:
    if expression.startswith("not "):
        return not _value(expression[4:].strip(), data)
    if expression.startswith("eq "):
        first, second = expression[3:].split(None, 1)
        return _value(first, data) == _value(second, data)
    return ast.literal_eval(expression) if expression.startswith('"') else data[expression.removeprefix(".")]


_PROGRAM = """package main
import ("encoding/json"; "os"; "text/template")
func main() {
  var given struct { Template string; Values map[string]any }
  if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil { panic(err) }
  t := template.Must(template.New("").Option("missingkey=zero").Parse(given.Template))
  if err := t.Execute(os.Stdout, given.Values); err != nil { panic(err) }
}
"""


def build_go(place: Path) -> Path:
    """A program that renders by Go's text/template."""
    (place / "main.go").write_text(_PROGRAM)
    subprocess.run(["go", "build", "-o", "render", "main.go"], cwd=place, check=True, env=_environment(place))
    return place / "render"


def _environment(place: Path) -> dict[str, str]:
    import os

    return {**os.environ, "GOCACHE": str(place / "cache"), "GO111MODULE": "off", "GOFLAGS": ""}


def by_go(program: Path, template: str, turns: Turns) -> str:
    given = json.dumps({"Template": template, "Values": values(turns)})
    return subprocess.run([program], input=given.encode(), check=True, capture_output=True).stdout.decode()

"""Functions of both packages fit a screen and have few branches."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_LINES = 60
MOST_BRANCHES = 20
"""Cyclomatic complexity as radon counts it. Ruff's C901 leaves out boolean operators, comprehensions and conditional
expressions, and so gives about half of it."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def branches_at(node: ast.AST) -> int:
    """What one node adds to the complexity of its function."""
    if isinstance(node, ast.If | ast.IfExp | ast.Assert):
        return 1
    if isinstance(node, ast.For | ast.AsyncFor | ast.While):
        return 1 + bool(node.orelse)
    if isinstance(node, ast.Try):
        return len(node.handlers) + bool(node.orelse)
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return len(node.cases) if isinstance(node, ast.Match) else 0


def complexity(function: Function) -> int:
    """Cyclomatic complexity of a function. A function inside it counts on its own."""
    total, inside = 1, [*ast.iter_child_nodes(function)]
    while inside:
        node = inside.pop()
        if not isinstance(node, Function):
            total += branches_at(node)
            inside += ast.iter_child_nodes(node)
    return total


def functions(text: str) -> list[Function]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, Function)]


def modules() -> list[Path]:
    return sorted(path for package in ("launcher", "train") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_fit_a_screen_and_have_few_branches(path):
    found = functions(path.read_text(encoding="utf-8"))
    assert {node.name: lines for node in found if (lines := node.end_lineno - node.lineno + 1) > MOST_LINES} == {}
    assert {node.name: branches for node in found if (branches := complexity(node)) > MOST_BRANCHES} == {}


def test_complexity_counts_every_kind_of_branch():
    text = """
async def f(items, flag):
    assert items
    for item in items:
        if item and flag or item > 3:
            pass
        elif flag:
            pass
    else:
        pass
    while flag:
        flag = [x for x in items if x if x > 1] if flag else lambda: 0
    try:
        pass
    except ValueError:
        pass
    except OSError:
        pass
    else:
        pass
    def inner():
        return 1 if flag else 2
"""
    outer, inner = functions(text)
    assert (complexity(outer), complexity(inner)) == (16, 2)

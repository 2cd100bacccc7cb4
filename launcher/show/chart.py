"""A curve in a few lines of text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rich.text import Text

XY = tuple[float, float]
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille character: rows of two dots."""


def chart(
    curve: Sequence[XY], marks: Sequence[XY], *, width: int, height: int, last: float | None = None, fancy: bool = True
) -> list[Text]:
    """`curve` as a line and `marks` as rings, over an axis from the first x to `last` (default: the last x there is).

    `height` lines and the axis below them, none wider than `width`. Without `fancy` it is plain ASCII.
    """
    points = [*curve, *marks]
    low, high = _range([y for _, y in points])
    left, right = min(x for x, _ in points), max(max(x for x, _ in points), last or 0)
    labels = [_label(high - (high - low) * row / max(1, height - 1)) for row in range(height)]
    margin = max(map(len, labels))
    columns = max(8, width - margin - 3)
    across, down = (2, 4) if fancy else (1, 1)
    canvas = [[0] * columns for _ in range(height)]

    def place(x: float, y: float) -> tuple[int, int]:
        column = round((x - left) / max(right - left, 1e-9) * (columns * across - 1))
        row = round((high - y) / (high - low) * (height * down - 1))
        return column, row

    for column, row in _line([place(x, y) for x, y in curve]):
        canvas[row // down][column // across] |= DOTS[row % 4][column % 2] if fancy else 1
    lines = []
    for row in range(height):
        shown = row in (0, height - 1) or (height > 6 and row == height // 2)
        head = Text(f"{labels[row] if shown else '':>{margin}} {'┤' if fancy else '|'}", style="dim")
        rings = {column // across for column, at in (place(x, y) for x, y in marks) if at // down == row}
        lines.append(head + _drawn(canvas[row], rings, fancy))
    return [*lines, _axis(f"{left:g}", f"{right:g}", margin, columns, fancy)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value, or some room around equal ones."""
    low, high = min(values), max(values)
    return (low, high) if high - low >= 1e-9 else (low - 0.5, high + 0.5)


def _axis(left: str, right: str, margin: int, columns: int, fancy: bool) -> Text:
    """The line below the canvas, with the first and the last x."""
    blanks = " " * max(1, columns - len(left) - len(right))
    return Text(f"{' ' * margin} {'└' if fancy else '+'}{left}{blanks}{right}", style="dim")


def _drawn(cells: Sequence[int], rings: set[int], fancy: bool) -> Text:
    """A line of the canvas."""
    line = Text()
    for column, bits in enumerate(cells):
        if column in rings:
            line.append("o", style="bold magenta")
        else:
            line.append((chr(0x2800 + bits) if fancy else "*") if bits else " ", style="cyan")
    line.rstrip()
    return line


def _line(places: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """The dots of straight lines from place to place."""
    found = set(places[:1])
    for (x, y), (other_x, other_y) in itertools.pairwise(places):
        steps = max(abs(other_x - x), abs(other_y - y), 1)
        found |= {
            (x + round((other_x - x) * part / steps), y + round((other_y - y) * part / steps))
            for part in range(steps + 1)
        }
    return found


def _label(value: float) -> str:
    digits = 2 if abs(value) < 1000 else 0
    return f"{value:.{digits}f}" if value == 0 or abs(value) >= 0.01 or not math.isfinite(value) else f"{value:.1e}"

"""The help of a command in Chinese: Click's own page, with each text replaced as it is written.

Click wraps lines at spaces and counts every character as one column. Chinese has no spaces, and its characters take
two columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import click

from launcher.machine.language import catalogue
from launcher.machine.language.spoken import columns

_EXTRA = re.compile(r"(?s)(.*?)(?:  \[(.*)\])?")
"""A help text and what Click adds to it: `  [default: 8; required]`."""
_EXTRAS = {"required": "必填", "default: ": "默认："}
_PIECE = re.compile(r"\s+|[\x21-\x7e]+|.")
"""What stays together on a line: a word in Latin letters, or one Chinese character."""
_NO_START = "，。；：、？！）》”’…"


def chinese(text: str) -> str:
    """The Chinese of a help text, with what Click adds to it."""
    found = _EXTRA.fullmatch(text)
    assert found is not None
    texts = catalogue.of("help")
    said = texts.get(found[1], found[1])
    if said.endswith("..."):  # Click cut it short, in a list of commands
        said = next((texts[whole] for whole in texts if whole.startswith(said[:-3])), said)
    if not found[2]:
        return said
    extra = found[2]
    for ours, theirs in _EXTRAS.items():
        extra = extra.replace(ours, theirs)
    return f"{said}  [{extra}]"


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a paragraph. No line begins with a punctuation mark that belongs to the line above."""
    lines, line = [], ""
    for piece in _PIECE.findall(text):
        if piece.isspace():
            piece = " "
        if line.strip() and columns(line + piece) > width and piece not in _NO_START:
            lines.append(line.rstrip())
            line = ""
        line += piece if line or piece != " " else ""
    return [*lines, line.rstrip()]


class HelpPage(click.HelpFormatter):
    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, chinese("Usage:") if prefix is None else prefix)

    def write_heading(self, heading: str) -> None:
        self.write(f"{'':>{self.current_indent}}{chinese(heading)}：\n")

    def write_text(self, text: str) -> None:
        indent = " " * self.current_indent
        paragraphs = chinese(text).split("\n\n")
        lines = ["\n".join(indent + line for line in self._lines(paragraph)) for paragraph in paragraphs]
        self.write("\n\n".join(lines) + "\n")

    def _lines(self, paragraph: str) -> Iterator[str]:
        for line in paragraph.split("\n"):  # a line break of a translation is meant
            yield from wrapped(line, max(self.width - self.current_indent, 11))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        rows = list(rows)
        names = min(max((columns(name) for name, _ in rows), default=0), col_max) + col_spacing
        for name, text in rows:
            lines = wrapped(chinese(text), max(self.width - names - self.current_indent - 2, 10))
            self._write_row(name, lines, names, col_spacing)

    def _write_row(self, name: str, lines: Iterable[str], names: int, spacing: int) -> None:
        left = " " * self.current_indent
        first = f"{left}{name}"
        if columns(name) > names - spacing:
            self.write(first + "\n")
            first = left
        for line in lines:
            self.write(f"{first:<{self.current_indent + names}}{line}".rstrip() + "\n")
            first = ""

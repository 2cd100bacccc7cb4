"""help.po, errors.po, views.po: what commands say in English, each with its Chinese, in the form that translators know.

A msgid of errors.po is a template: `{path}: no such file` stands for every text with something in place of `{path}`.
Whoever raises an error writes an f-string as everywhere; docs/messages.py finds it and writes the template. In a
msgstr, `{reason:t}` marks a field whose value is a text of ours in turn. There are no .mo files: all templates are
needed to find that of a text, and gettext only answers for a text that is known.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable
from pathlib import Path

_ENTRY = re.compile(r'^msgid (".*"(?:\n".*")*)\nmsgstr (".*"(?:\n".*")*)$', re.MULTILINE)
_ESCAPE = re.compile(r"\\(.)")
_ENOUGH = 9
"""Letters of its own that a template needs, so that its fields may be more than a word (but the last one)."""
_MEANT = {"n": "\n", "t": "\t"}


def read(file: Path) -> dict[str, str]:
    """{msgid: msgstr} of a catalogue, without its header."""
    found = _ENTRY.findall(file.read_text(encoding="utf-8"))
    return {_unquoted(msgid): _unquoted(msgstr) for msgid, msgstr in found if msgid != '""'}


def _unquoted(text: str) -> str:
    joined = text[1:-1].replace('"\n"', "")
    return _ESCAPE.sub(lambda found: _MEANT.get(found[1], found[1]), joined) if "\\" in joined else joined


@functools.cache
def of(name: str) -> dict[str, str]:
    return read(Path(__file__).parent / f"{name}.po")


def pieces(template: str) -> list[tuple[str, str | None, str]]:
    """(literal text, field behind it or None, its mark) of a template."""
    return [(text, name, mark or "") for text, name, mark, _ in string.Formatter().parse(template)]


def matched(text: str, translated: Callable[[str], str]) -> str | None:
    """The Chinese of a text by the template that has most of it in common; None: no template fits."""
    fitting = [entry for entry in _templates() if all(literal in text for literal in entry[1])]
    for msgid, _, msgstr in fitting:
        if found := _pattern(msgid).fullmatch(text):
            return _filled(msgstr, found.groupdict(), translated)
    return None


@functools.cache
def _templates() -> tuple[tuple[str, tuple[str, ...], str], ...]:
    """(msgid, its literal parts, msgstr), those with most literal text first."""
    rows = []
    for msgid, msgstr in of("errors").items():
        if msgstr:
            rows.append((msgid, tuple(literal for literal, _, _ in pieces(msgid) if literal), msgstr))
    return tuple(sorted(rows, key=lambda row: -sum(map(len, row[1]))))


@functools.cache
def _pattern(msgid: str) -> re.Pattern[str]:
    parts = pieces(msgid)
    own = sum(character.isalpha() for text, _, _ in parts for character in text)
    value = r".*?" if own >= _ENOUGH else r"\S+?"
    fields = [value] * (len(parts) - 1) + [".*"]
    found = (
        re.escape(text) + (f"(?P<{name}>{field})" if name else "")
        for (text, name, _), field in zip(parts, fields, strict=True)
    )
    return re.compile("".join(found))


def _filled(msgstr: str, values: dict[str, str], translated: Callable[[str], str]) -> str:
    shown = []
    for text, name, mark in pieces(msgstr):
        value = values[name] if name else ""
        shown += [text, translated(value) if mark == "t" else value]
    return "".join(shown)

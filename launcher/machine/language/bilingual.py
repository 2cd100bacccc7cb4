"""Texts of ours in Chinese: a text in English is its own name, and catalogues and tables of patterns give its Chinese.

So every file of a run stays as it is: plan.json and events.jsonl hold English, which programs and people read, and a
run of an earlier version shows its texts in both languages. A text without a row stays English.
"""

from __future__ import annotations

import functools
import re

from launcher.machine.language import catalogue, output_rows, problem_rows, reason_rows, verdict_rows

TABLES = (verdict_rows.ROWS, reason_rows.ROWS, problem_rows.ROWS, output_rows.ROWS)
"""(pattern of the whole text, its Chinese). Of the pattern's groups, those named t, t1 ... are texts in turn, and w is
words such as `true, false or auto`; others stay as they are."""
_LONGEST = 2000
"""Characters of a line that may be ours; a longer one is of a program or a record."""
_MARK = re.compile(r"(?:(error)(\[ZL-[A-Z]+-\d+\])?|(warning|note)): |(->) ")
"""What stands before a text that a command prints."""
_MARKS = {"error": "错误", "warning": "警告", "note": "注意", "->": "→ "}
_PLACE = re.compile(r"((?:[^\s:]*[./\w\]]: ?)+)(?=\S)(.+)")
"""A text behind its place: `train.jsonl:7: ...`, `data.train: ...`."""


@functools.lru_cache(maxsize=4096)
def in_chinese(text: str) -> str:
    """The Chinese of a text. Its lines, what `; ` separates, and what follows a place are texts in turn."""
    if "\n" in text:
        return "\n".join(map(in_chinese, text.split("\n")))
    bare = text.lstrip()
    if len(bare) > _LONGEST:
        return text
    left = text[: len(text) - len(bare)]
    if mark := _MARK.match(bare):
        word = mark[1] or mark[3] or mark[4]
        behind = "" if mark[4] else "："
        return f"{left}{_MARKS[word]}{mark[2] or ''}{behind}{in_chinese(bare[mark.end() :])}"
    return left + (_of_row(bare) or _of_parts(bare) or bare)


def both(text: str) -> tuple[str, str]:
    """(English, Chinese) of a text of ours."""
    return text, in_chinese(text)


def _of_row(text: str) -> str | None:
    if by_template := catalogue.matched(text, in_chinese):
        return by_template
    for pattern, chinese in _rows():
        if found := pattern.fullmatch(text):
            return _filled(found, chinese)
    return None


def _filled(found: re.Match[str], chinese: str) -> str:
    """The Chinese with the groups of a match in their places."""

    def group(place: re.Match[str]) -> str:
        name = place[1] or place[2]
        value = found[int(name) if name.isdigit() else name] or ""
        return value if name.isdigit() else _words(value) if name[0] == "w" else in_chinese(value)

    return re.sub(r"\\(?:(\d)|g<(\w+)>)", group, chinese)


def _words(text: str) -> str:
    """`true, false or auto`, word by word."""
    if whole := _of_row(text):
        return whole
    pieces = re.split(r"(, (?![^\[{]*[\]}])| or )", text)
    between = {", ": "、", " or ": " 或 "}
    return "".join(between.get(piece) or _of_row(piece) or piece for piece in pieces)


def _of_parts(text: str) -> str | None:
    """The Chinese of a text that is made of others; None if a part has none."""
    parts = text.split("; ")
    if len(parts) > 1:
        found = [_of_row(part) or _behind_place(part) for part in parts]
        if all(found):
            return "；".join(filter(None, found))
    return _behind_place(text)


def _behind_place(text: str) -> str | None:
    found = _PLACE.fullmatch(text)
    if found is None:
        return None
    inner = _of_row(found[2]) or (_of_parts(found[2]) if "; " in found[2] else None)
    return f"{found[1].rstrip()} {inner}" if inner else None


@functools.cache
def _rows() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), chinese) for rows in TABLES for pattern, chinese in rows)

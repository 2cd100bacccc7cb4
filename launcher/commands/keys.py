"""`zlaunch keys`: what the keys of a job mean, and what other programs call them."""

from __future__ import annotations

import functools
import importlib
import json
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator

import click
import msgspec

from launcher.errors import UsageError
from launcher.job.reference import peer_words
from launcher.job.reference.key_reference import Key, accepted_in_chinese, keys
from launcher.job.reference.key_table import SECTIONS

WIDEST = 100
"""Columns of a text, also in a wider terminal."""
WORDS = {
    "en": {
        "default": "default",
        "example": "example",
        "flag": "flag",
        "peers": "elsewhere",
        "more": "`zlaunch keys PATTERN` explains those that match.",
    },
    "zh": {
        "default": "默认",
        "example": "示例",
        "flag": "选项",
        "peers": "其他程序",
        "more": "`zlaunch keys 词` 解释匹配的键。",
    },
}

FLAGS = {"local": ("local", "LOCAL_FLAGS"), "ssh": ("ssh", "HOST_FLAGS"), "slurm": ("slurm", "SLURM_FLAGS")}
"""The table of a backend's own flags: module among the commands, and name."""


@click.command()
@click.argument("pattern", nargs=-1)
@click.option("--lang", type=click.Choice(["en", "zh"]), help="Language of the texts (default: that of PATTERN).")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, one object per key.")
def keys_(pattern: tuple[str, ...], lang: str | None, as_json: bool) -> None:
    """Explain the keys of a job.

    Without PATTERN, list all of them. PATTERN is a key, a section, a word of the texts (English or Chinese), or the
    name of a key or option in Transformers, TRL, LLaMA-Factory, axolotl, ms-swift, DeepSpeed, torchrun or Slurm.
    """
    found = matching(pattern)
    if as_json:
        click.echo(json.dumps([described(key) for key in found], ensure_ascii=False, indent=1))
        return
    language = lang or ("zh" if any(ord(char) > 0x2E80 for char in "".join(pattern)) else "en")
    width = min(WIDEST, shutil.get_terminal_size((80, 24)).columns)
    notes = [(word, meaning) for word in pattern for meaning in peer_words.find(word) if meaning.note]
    for word, meaning in notes:
        click.echo("\n".join(folded(f"{word} is {meaning.text}", width, "", "    ")))
    if not found and not notes:
        raise UsageError(
            f"no key matches {' '.join(pattern)!r}", hint="`zlaunch keys` lists all of them", code="ZL-OPT-03"
        )
    if not found:
        return
    if notes:
        click.echo()
    lines = in_full(found, language, width) if pattern else listed(found, language, width)
    click.echo("\n".join(lines))


def matching(pattern: Iterable[str]) -> list[Key]:
    """The keys that a search finds: of a section, of that name here or elsewhere, or with all of these words."""
    words = [peer_words.plain(word) for word in pattern]
    if not words:
        return list(keys().values())
    if len(words) == 1:
        named = [meaning.key for meaning in peer_words.find(words[0])]
        exact = [key for key in keys().values() if words[0] in (key.name, key.section, key.last) or key.name in named]
        if exact:
            return exact
    return [key for key in keys().values() if all(word in _searched(key) for word in words)]


def _searched(key: Key) -> str:
    peers = " ".join(peer_words.plain(peer.name) for peer in key.peers)
    programs = " ".join(key.peers_text.lower().split())
    texts = (key.name, key.label, key.text, key.row.chinese, key.row.text, key.type)
    return f"{' '.join(texts).lower()} {peers} {programs}"


def described(key: Key) -> dict[str, object]:
    """All that is known of a key, for programs."""
    return {
        "key": key.name,
        "type": key.type,
        "default": msgspec.to_builtins(key.default),
        "range": str(key.range) if key.range else None,
        "text": key.text,
        "label_zh": key.row.chinese,
        "text_zh": key.row.text,
        "example": key.row.example,
        "flag": flags(key.section).get(key.name),
        "peers": [
            {"name": peer.name, "programs": list(peer.programs),
             "differs": peer_words.DIFFERENCES.get(peer_words.plain(peer.name))}
            for peer in key.peers
        ],
    }  # fmt: skip


@functools.cache
def flags(section: str) -> dict[str, str]:
    """{key: its own option of a command, where it has one}, of one section: importing all backends takes a second."""
    from launcher.commands.options import JOB_FLAGS

    module, name = FLAGS.get(section, ("options", "JOB_FLAGS"))
    more = getattr(importlib.import_module(f"launcher.commands.{module}"), name)
    return {flag.key: flag.names.split()[0] for flag in (*more, *JOB_FLAGS)}


def listed(found: Iterable[Key], language: str, width: int) -> Iterator[str]:
    """One line per key: its name, its default, and the beginning of its text."""
    section = None
    for key in found:
        if key.section != section:
            section = key.section
            yield ("" if section == "" else "\n") + SECTIONS[section][language == "zh"]
        default = key.default_text if len(key.default_text) <= 12 else "..."
        begin = f"  {key.name.ljust(28)} {default.ljust(12)} "
        yield begin + cut(key.row.text if language == "zh" else key.text, width - len(begin))
    yield (
        "\n"
        + {"en": "zlaunch keys PATTERN explains those that match.", "zh": "zlaunch keys 词 解释匹配的键。"}[language]
    )


def in_full(found: Iterable[Key], language: str, width: int) -> Iterator[str]:
    """Some lines per key: type, range, default, text, example, and names elsewhere."""
    words = WORDS[language]
    for number, key in enumerate(found):
        accepted = accepted_in_chinese(key) if language == "zh" else key.accepted
        head = f"{key.name}: {accepted}; {words['default']} {key.default_text}"
        yield from folded(("\n" if number else "") + head, width, "", "    ")
        yield from folded(key.row.text if language == "zh" else key.text, width, "    ", "    ")
        rows = [
            (words["example"], f"{key.last}: {key.row.example}"),
            (words["flag"], flags(key.section).get(key.name, "")),
            (words["peers"], key.peers_text),
        ]
        for name, value in rows:
            if value:
                yield from folded(f"{name}: {value}", width, "    ", "      ")


def columns(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def cut(text: str, width: int) -> str:
    """The first sentence of a text, or as much of it as fits, with `...` where that is not all of it."""
    first = re.split(r"(?<=[.。])(?<!al\.) ?(?=[^\d])", text, maxsplit=1)[0]
    if columns(first) <= width:
        return first
    while columns(first) > max(width, 8) - 3:
        first = first[:-1]
    return first.rstrip() + "..."


def folded(text: str, width: int, first: str, rest: str) -> Iterator[str]:
    """A text in lines of at most `width` columns, cut at blanks and beside Chinese characters."""
    line, empty = first, True
    for piece in re.findall(r"[\u2e80-\uffef][，。、；：）」？！]*|[^\s\u2e80-\uffef]+|\s+", text):
        if columns(line + piece.rstrip(" ")) > width and not empty:
            yield line.rstrip()
            line, empty = rest, True
        if empty and piece.isspace() and "\n" not in piece:
            continue
        line, empty = line + piece, False
    yield line.rstrip()

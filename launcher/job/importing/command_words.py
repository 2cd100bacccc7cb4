"""Training commands, also in shell scripts: variables, continued lines, launchers with their numbers of GPUs.

A script is read, never run. What only a shell could tell, such as `$(nproc)`, is reported as lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.job.importing.draft import Note

PROGRAMS = (
    (r"(?:^|/)llamafactory-cli$|(?:^|/)lmf$", "llamafactory", ("train",)),
    (r"(?:^|/)trl$", "trl", ("sft",)),
    (r"(?:^|/)scripts/sft\.py$|^sft\.py$|^trl\.scripts\.sft$", "trl", ()),
    (r"(?:^|/)swift$", "swift", ("sft",)),
    (r"(?:^|/)swift/cli/sft\.py$|^swift\.cli\.sft$", "swift", ()),
    (r"(?:^|/)axolotl$", "axolotl", ("train",)),
    (r"^axolotl\.cli\.train$", "axolotl", ()),
    (r"(?:^|/)src/train(?:_bash)?\.py$|^llamafactory\.launcher$|(?:^|/)llamafactory/launcher\.py$", "llamafactory", ()),
)
"""(pattern of a word, program, words that must follow it)"""
EXAMPLES = ("llamafactory-cli train FILE", "axolotl train FILE", "swift sft ...", "trl sft ...")
_UNKNOWN = "\0"
"""Stands in a word for what only a shell could tell."""


@dataclass(frozen=True)
class Command:
    program: str
    words: tuple[str, ...]
    """The arguments of the program."""
    environment: Mapping[str, str]
    gpus: int | None
    """As the launcher says: nodes times processes per node."""
    lost: tuple[Note, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str | None:
        """A configuration file among the arguments: the first word, or --config."""
        if self.words and not self.words[0].startswith("-") and re.search(r"\.(ya?ml|json)$", self.words[0]):
            return self.words[0]
        for word, following in zip(self.words, self.words[1:], strict=False):
            if word == "--config":
                return following
        return None

    def tree(self, of_file: Mapping[str, Any]) -> dict[str, Any]:
        """The settings: those of the file, then the options."""
        given = options(self.words)
        given.pop("config", None)
        return {**of_file, **given}


def options(words: tuple[str, ...]) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--flag`, `--list a b`, and `key=value` after a file."""
    found: dict[str, Any] = {}
    name = ""
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = value if equals else True
            name = "" if equals else name
        elif name:
            earlier = found[name]
            value = _json(word)
            found[name] = value if earlier is True else [*(earlier if isinstance(earlier, list) else [earlier]), value]
        elif re.match(r"^[A-Za-z_][\w.]*=", word):
            key, _, value = word.partition("=")
            found[key] = value
    return found


def _json(word: str) -> Any:
    """A mapping that is written as JSON; another word as it is."""
    if not word.lstrip().startswith("{"):
        return word
    try:
        return json.loads(word)
    except ValueError:
        return word


def training_commands(text: str) -> list[Command]:
    """Every training command of a script, in order."""
    found: list[Command] = []
    variables: dict[str, str] = {}
    for words in _statements(text, variables):
        assigned, rest = _assignments(words)
        if not rest:
            variables.update(assigned)
        elif rest[0] == "export":
            variables.update(dict(_split(word) for word in rest[1:] if "=" in word))
        else:
            found += _command(rest, {**variables, **assigned})
    return found


def _assignments(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """(`NAME=value` words before a command, the command)"""
    count = 0
    while count < len(words) and re.match(r"^[A-Za-z_]\w*=", words[count]):
        count += 1
    if words[count : count + 1] == ["env"]:
        inner, rest = _assignments(words[count + 1 :])
        return {**dict(map(_split, words[:count])), **inner}, rest
    return dict(map(_split, words[:count])), words[count:]


def _split(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def _command(words: list[str], environment: Mapping[str, str]) -> Iterator[Command]:
    for place, word in enumerate(words):
        for pattern, program, following in PROGRAMS:
            if re.search(pattern, word) and (not following or words[place + 1 : place + 2] == list(following)):
                arguments = words[place + 1 + len(following) :]
                lost = [Note(argument.replace(_UNKNOWN, "..."), None, "only a shell could tell")
                        for argument in arguments if _UNKNOWN in argument]  # fmt: skip
                known = tuple(argument for argument in arguments if _UNKNOWN not in argument)
                gpus = _gpus(words[:place], environment, visible_count=program != "swift")
                if program == "swift" and gpus is None:
                    gpus = 1  # one process on all visible GPUs, where no NPROC_PER_NODE asks for more
                yield Command(program, known, environment, gpus, tuple(lost))
                return


_PER_NODE = ("nproc_per_node", "num_gpus", "gpus_per_node")
_NODES = ("nnodes", "num_nodes", "num_machines")


def _gpus(launcher: list[str], environment: Mapping[str, str], *, visible_count: bool) -> int | None:
    """How many ranks the launcher starts; None: it does not say.

    `visible_count`: the program starts a rank on each visible GPU by itself.
    """
    given = options(tuple(launcher))
    if (total := _count(given.get("num_processes"))) is not None:
        return total
    each = next((count for name in _PER_NODE if (count := _count(given.get(name))) is not None), None)
    each = each if each is not None else _count(environment.get("NPROC_PER_NODE"))
    nodes = next((count for name in _NODES if (count := _count(given.get(name))) is not None), None)
    nodes = nodes if nodes is not None else _count(environment.get("NNODES"))
    if each is None:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        if visible is None or _UNKNOWN in visible or not visible_count:
            return None
        each = len([device for device in visible.split(",") if device.strip()])
    return each * (nodes or 1)


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, str) and value.isdigit() else None


def _statements(text: str, variables: dict[str, str]) -> Iterator[list[str]]:
    """The words of each command of a script, with variables filled in as they are known there."""
    reader = _Reader(text.replace("\r\n", "\n"), variables)
    while (words := reader.statement()) is not None:
        if words:
            yield words


class _Reader:
    """Words of a shell script: quotes, escapes, comments, continued lines, variables."""

    def __init__(self, text: str, variables: dict[str, str]) -> None:
        self.text, self.at, self.variables = text, 0, variables

    def statement(self) -> list[str] | None:
        """The words up to the end of a command; None: the script is over."""
        if self.at >= len(self.text):
            return None
        words: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in " \t":
                self.at += 1
            elif self.text.startswith("\\\n", self.at):
                self.at += 2
            elif char == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif char in "\n;&|":
                self.at += 1
                return words
            elif char in "()":
                self.at += 1  # a subshell's own commands
            elif match := re.match(r"[<>]+&?[ \t]*", self.text[self.at :]):
                if self.at and self.text[self.at - 1].isdigit() and words:
                    words.pop()  # the 2 of `2>&1`
                self.at += match.end()
                self._word()
            else:
                words += self._word()
        return words

    def _word(self) -> list[str]:
        """One word; several, where an unquoted variable holds blanks."""
        parts: list[tuple[str, bool]] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in " \t\n;&|()<>":
                break
            if char == "'":
                end = self.text.find("'", self.at + 1)
                end = len(self.text) if end < 0 else end
                parts.append((self.text[self.at + 1 : end], True))
                self.at = end + 1
            elif char == '"':
                parts.append((self._quoted(), True))
            elif char == "\\":
                if self.text[self.at + 1 : self.at + 2] != "\n":
                    parts.append((self.text[self.at + 1 : self.at + 2], True))
                self.at += 2
            elif char in "$`":
                parts.append((self._expansion(), False))
            else:
                parts.append((char, True))
                self.at += 1
        if any(not quoted and re.search(r"\s", text) for text, quoted in parts):
            return "".join(text for text, _ in parts).split()
        return ["".join(text for text, _ in parts)] if parts else []

    def _quoted(self) -> str:
        self.at += 1
        found = ""
        while self.at < len(self.text) and self.text[self.at] != '"':
            char = self.text[self.at]
            if char == "\\" and self.text[self.at + 1 : self.at + 2] in ('"', "\\", "$", "`", "\n"):
                found += self.text[self.at + 1].replace("\n", "")
                self.at += 2
            elif char in "$`":
                found += self._expansion()
            else:
                found += char
                self.at += 1
        self.at += 1
        return found

    def _expansion(self) -> str:
        """`$NAME`, `${NAME}`, `${NAME:-default}`; a mark for what only a shell could tell."""
        rest = self.text[self.at :]
        if match := re.match(r"\$(\w+)|\$\{(\w+)\}", rest):
            self.at += match.end()
            return self.variables.get(match[1] or match[2], _UNKNOWN)
        if match := re.match(r"\$\{(\w+):?-([^}]*)\}", rest):
            self.at += match.end()
            return self.variables.get(match[1]) or match[2].strip("\"'")
        if match := re.match(r"`[^`]*`", rest):
            self.at += match.end()
            return _UNKNOWN
        if rest.startswith("$("):
            length = _closing(rest)
            self.at += length
            return self._computed(rest[2 : length - 1])
        self.at += 1
        return "$" if rest[:1] == "$" else _UNKNOWN

    def _computed(self, inner: str) -> str:
        """`$(expr 32 / $N)` and `$((32 / N))` of whole numbers; of another command nobody knows."""
        if not (inner.startswith("expr ") or (inner.startswith("(") and inner.endswith(")"))):
            return _UNKNOWN
        parts = _Reader(inner.removeprefix("expr ").strip("()"), self.variables).statement() or []
        parts = [self.variables.get(part, part) for part in parts]
        if not all(re.fullmatch(r"\d+" if place % 2 == 0 else r"[*/+-]", part) for place, part in enumerate(parts)):
            return _UNKNOWN
        found = int(parts[0]) if parts else 0
        for sign, number in zip(parts[1::2], map(int, parts[2::2]), strict=False):
            if sign == "/" and number == 0:
                return _UNKNOWN
            found = {"*": found * number, "/": found // max(1, number), "+": found + number, "-": found - number}[sign]
        return str(found) if parts else _UNKNOWN


def _closing(text: str) -> int:
    """The length of `$(...)` with its inner brackets."""
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == ")" and depth == 0:
            return place + 1
    return len(text)

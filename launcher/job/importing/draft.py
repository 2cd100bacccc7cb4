"""The form between the configuration of another program and a job: settings, and a reason for every other word.

A reader takes each word of the configuration once. What nobody took is in the draft too, as lost, so that no word is
dropped in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from launcher.errors import SpecError
from launcher.job import yamlfile


class Setting(NamedTuple):
    value: Any
    note: str
    """Source of the value: the key of the other program, or the program whose default it is."""


class Note(NamedTuple):
    word: str
    value: Any
    reason: str

    def __str__(self) -> str:
        shown = "" if self.value is None else f": {shown_value(self.word, self.value)}"
        return f"{self.word}{shown}  ({self.reason})"


@dataclass(frozen=True)
class Context:
    """What is known besides the configuration itself."""

    origin: Path | None = None
    """The file that is imported; None: a command."""
    here: Path = field(default_factory=Path.cwd)
    gpus: int | None = None
    """As `--gpus` says; None: unknown."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that a script sets for the program."""

    def find(self, path: str) -> Path | None:
        """A file or directory by the working directory, else by the folders around the imported file; None: none."""
        place = Path(path).expanduser()
        around = [] if self.origin is None else list(self.origin.resolve().parents)
        return next((base / place for base in (self.here, *around) if (base / place).exists()), None)


@dataclass
class Draft:
    program: str
    """Whose configuration it was: LLaMA-Factory, axolotl, ..."""
    settings: dict[str, Setting] = field(default_factory=dict)
    """By dotted key of a job."""
    lost: list[Note] = field(default_factory=list)
    """Changes the training, and a job cannot say it."""
    differs: list[Note] = field(default_factory=list)
    """Carried over, with a meaning that is not quite the same."""
    unused: list[Note] = field(default_factory=list)
    """Without effect on the training here."""
    refused: list[Note] = field(default_factory=list)
    """What zlaunch does not train at all."""

    def set(self, key: str, value: Any, note: str) -> None:
        self.settings[key] = Setting(value, note)

    def value(self, key: str, default: Any = None) -> Any:
        return self.settings[key].value if key in self.settings else default

    @property
    def whole(self) -> bool:
        """Whether the job says all that the configuration said of the training."""
        return not self.lost and not self.refused


def set_batch(draft: Draft, micro: int, steps: int, gpus: int | None) -> None:
    count = gpus or 1
    note = f"{micro} per GPU x {steps} accumulated x {count} GPU{'s' if count > 1 else ''}"
    draft.set("train.global_batch_size", micro * steps * count, note)
    if gpus is None:
        reason = "the configuration does not say how many GPUs: 1 assumed for train.global_batch_size"
        draft.differs.append(Note("--gpus", None, reason))


def parsed_json(text: str | bytes, where: str) -> Any:
    """Raises SpecError for a text that is not JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise SpecError(f"{where}: not valid JSON: {error}", code="ZL-JOB-06") from None


def is_off(value: Any) -> bool:
    """Whether a value asks for nothing: null, false, none, an empty list or text."""
    return value is None or value is False or value in ("", [], {}) or str(value).lower() in ("none", "false", "null")


_SECRET = re.compile(r"token$|api_key|secret|password|passwd|webhook|credential", re.IGNORECASE)
_LONGEST = 100


def shown_value(word: str, value: Any) -> str:
    """A value on one line; not that of a word that may hold a secret."""
    if _SECRET.search(word) and isinstance(value, str):
        return "(not shown)"
    text = yamlfile.dumps(value, flow=True).removesuffix("\n...").strip()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


class Words:
    """The words of a configuration. Each is taken once; `finish` puts what is left into the draft."""

    def __init__(self, tree: Mapping[str, Any], draft: Draft, prefix: str = "") -> None:
        self.tree = dict(tree)
        self.draft = draft
        self.prefix = prefix
        self._left = dict(self.tree)

    def given(self, word: str) -> bool:
        """Whether the configuration gives the word a value."""
        return self.tree.get(word) is not None

    def take(self, word: str, default: Any = None) -> Any:
        value = self._left.pop(word, self.tree.get(word))
        return default if value is None else value

    def text(self, word: str, default: str | None = None) -> str | None:
        value = self.take(word)
        if value is None:
            return default
        if isinstance(value, (dict, list)):
            self._wrong(word, value, "a text")
            return default
        return str(value).lower() if isinstance(value, bool) else str(value)

    def number(self, word: str, default: float | None = None) -> float | None:
        """A number, also where YAML 1.1 takes it for a text, as in 1e-4."""
        value = self.take(word)
        if value is None or is_off(value):
            return default
        try:
            if isinstance(value, bool):
                raise ValueError
            found = float(value)
            if not math.isfinite(found):
                raise ValueError
        except (TypeError, ValueError):
            self._wrong(word, value, "a number")
            return default
        return int(found) if found.is_integer() and abs(found) < 1e15 and "e" not in str(value).lower() else found

    def whole(self, word: str, default: int | None = None) -> int | None:
        found = self.number(word)
        if found is not None and not float(found).is_integer():
            self._wrong(word, found, "a whole number")
            found = None
        return default if found is None else int(found)

    def flag(self, word: str, default: bool = False) -> bool:
        value = self.take(word)
        if value is None:
            return default
        text = str(value).lower()
        if text in ("true", "yes", "on", "1", "y"):
            return True
        if text not in ("false", "no", "off", "0", "n", "none", "null", ""):
            self._wrong(word, value, "true or false")
        return False

    def mapping(self, word: str) -> Mapping[str, Any]:
        """A mapping of names; empty where the word is absent."""
        value = self.take(word)
        if isinstance(value, Mapping):
            return value
        if not is_off(value):
            self._wrong(word, value, "a mapping")
        return {}

    def names(self, word: str) -> tuple[str, ...]:
        """A list of names, or a text with commas or blanks between them."""
        value = self.take(word)
        if is_off(value):
            return ()
        if isinstance(value, (list, tuple)):
            return tuple(str(item) for item in value)
        return tuple(name for name in re.split(r"[,\s]+", str(value)) if name)

    def carry(self, key: str, word: str, read: Callable[[str], Any], default: Any = None) -> Any:
        """Set a key of the job to the value of a word, else to the program's own default (None: to nothing)."""
        value = read(word)
        given = value is not None and self.given(word)
        value = value if given else default
        if value is not None:
            self.draft.set(key, value, self.prefix + word if given else f"{word}: {self.draft.program}'s default")
        return value

    def unused(self, reason: str, *words: str) -> None:
        for word in words:
            self._note(self.draft.unused, word, reason)

    def lost(self, reason: str, *words: str) -> None:
        """Words that a job cannot say. A value that asks for nothing loses nothing."""
        for word in words:
            off = is_off(self.tree.get(word)) or self.tree.get(word) == 0
            self._note(self.draft.unused if off else self.draft.lost, word, "off, as here" if off else reason)

    def differs(self, reason: str, word: str) -> None:
        self._note(self.draft.differs, word, reason)

    def refuse(self, reason: str, *words: str) -> None:
        for word in words:
            off = is_off(self.tree.get(word))
            self._note(self.draft.unused if off else self.draft.refused, word, "off, as here" if off else reason)

    def finish(self) -> None:
        """What nobody took: unknown here, and lost unless it asks for nothing."""
        for word in list(self._left):
            self.lost(f"unknown to this import of {self.draft.program}", word)

    def _note(self, where: list[Note], word: str, reason: str) -> None:
        if word in self._left:
            del self._left[word]
            where.append(Note(self.prefix + word, self.tree[word], reason))

    def _wrong(self, word: str, value: Any, expected: str) -> None:
        self.draft.refused.append(Note(self.prefix + word, value, f"expected {expected}"))

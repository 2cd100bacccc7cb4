"""The text of a job file that was imported, and what the terminal says of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from launcher.errors import SpecError
from launcher.job.importing.draft import Draft, Note
from launcher.job.load import convert, put
from launcher.job.reference.commented import HEAD, commented

_KINDS = (
    ("lost", "Lost: the job trains otherwise than the original in these"),
    ("differs", "Carried over with a difference"),
    ("unused", "Left out, without effect on the training here"),
)


def text(draft: Draft, origin: str, *, schema: str = "", full: bool = False) -> str:
    """A commented job file, `full`: with every key.

    Raises SpecError with everything that zlaunch cannot train, and for a value that a job cannot have.
    """
    if draft.refused:
        shown = "".join(f"\n  {_line(note)}" for note in draft.refused)
        raise SpecError(f"zlaunch cannot train what {origin} asks for:{shown}", code="ZL-JOB-06")
    values = {key: setting.value for key, setting in draft.settings.items()}
    tree: dict[str, Any] = {}
    for key, value in values.items():
        put(tree, key, value, where=origin)
    convert(tree, where=origin)
    notes = {key: _clean(setting.note) for key, setting in draft.settings.items()}
    head = [f"# Imported from {_clean(origin)} ({draft.program}) by `zlaunch init --from`.", *HEAD.splitlines()]
    for name, title in _KINDS:
        head += _listed(title, getattr(draft, name))
    return commented(values, notes=notes, head="\n".join(head), schema=schema, full=full)


def report(draft: Draft) -> Iterator[str]:
    """Lines for the terminal: what was lost, what differs, and how much was left out."""
    for note in draft.lost:
        yield f"lost: {_line(note)}"
    for note in draft.differs:
        yield f"differs: {_line(note)}"
    if draft.unused:
        names = ", ".join(dict.fromkeys(note.word for note in draft.unused))
        yield f"without effect here: {_clean(names)}"


def title_of(source: str) -> str:
    """What an imported job says it comes from."""
    shown = " ".join(source.split())
    return f"{shown[:60]}..." if len(shown) > 60 else shown


def _listed(title: str, notes: Iterable[Note]) -> list[str]:
    lines = [f"#   {_line(note)}" for note in notes]
    return [f"# {title}:", *lines] if lines else []


def _line(note: Note) -> str:
    return _clean(str(note))


def _clean(shown: str) -> str:
    """On one line, and without characters that end a comment."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]+", " ", shown)

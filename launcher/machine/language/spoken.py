"""Which language is shown, and text for a terminal in it. Imports almost nothing: every command does this first."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.errors import ZlaunchError

LANGUAGE = "ZLAUNCH_LANG"
"""zh or en; before the locale."""


def is_chinese(environ: Mapping[str, str] = os.environ) -> bool:
    """By ZLAUNCH_LANG, else by the locale for messages as gettext finds it."""
    named = (environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    locale = next(filter(None, named), "C")
    if locale.partition(".")[0] not in ("C", "POSIX"):
        locale = environ.get("LANGUAGE") or locale
    return (environ.get(LANGUAGE) or locale).lower().startswith("zh")


def shown(text: str) -> str:
    """A text of ours as it is shown in a terminal. Lines that are not ours stay as they are."""
    if not is_chinese():
        return text
    from launcher.machine.language import bilingual, catalogue

    return catalogue.of("views").get(text) or bilingual.in_chinese(text)


def said(text: str, **values: Any) -> str:
    """A label or a line of a view, such as `step {step} of {total}`, filled with values."""
    if is_chinese():
        from launcher.machine.language import catalogue

        text = catalogue.of("views").get(text) or text
    return text.format(**values)


def columns(text: str) -> int:
    """Columns of a terminal: a Chinese character takes two."""
    if text.isascii():
        return len(text)
    from unicodedata import east_asian_width

    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def padded(text: str, width: int) -> str:
    """`f"{text:<{width}}"` by columns."""
    return text + " " * (width - columns(text))


@contextlib.contextmanager
def heard(when: bool = True, *, output: bool = False) -> Iterator[int | None]:
    """A descriptor for what a program of ours writes to standard error, whose lines are shown in the user's language.

    `output`: to standard output. None: they are English as they come.
    """
    if not (when and is_chinese()):
        yield None
        return
    reader, writer = os.pipe()

    def listen() -> None:
        with os.fdopen(reader, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                with contextlib.suppress(OSError):  # the terminal is gone: the program must not wait for a full pipe
                    print(shown(line.rstrip("\n")), file=sys.stdout if output else sys.stderr, flush=True)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield writer
    finally:
        os.close(writer)
        listener.join(2.0)  # something that outlives the program may hold the other end


def say(text: str) -> None:
    """Print a text of ours on standard error."""
    print(shown(text), file=sys.stderr, flush=True)


def tell(error: ZlaunchError) -> None:
    """Print an error as commands do: its code, what happened, and what to do next."""
    say(error.shown)

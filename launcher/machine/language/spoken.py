"""Which language is shown, and text for a terminal in it. Imports almost nothing: every command does this first."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

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
    from launcher.machine.language.bilingual import in_chinese

    return in_chinese(text)


def say(text: str) -> None:
    """Print a text of ours on standard error."""
    print(shown(text), file=sys.stderr, flush=True)


def tell(error: ZlaunchError) -> None:
    """Print an error as commands do: its code, what happened, and what to do next."""
    say(error.shown)

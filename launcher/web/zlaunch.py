"""zlaunch commands that the server starts, so that a browser does what a terminal does."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from launcher.machine import process, trainer
from launcher.machine.language import spoken
from launcher.machine.process import LineProcess
from launcher.rundir import find


def start(words: Sequence[str], *, errors_apart: bool = False) -> LineProcess:
    """Start `zlaunch WORDS`, with the runs of this server. Raises CommandError.

    It starts where our package is: `python -m` imports from the working directory first, so no path in `words` may be
    relative.
    """
    return LineProcess(_argv(words), env=_environment(), cwd=trainer.NEUTRAL, errors_apart=errors_apart)


def run(words: Sequence[str]) -> process.Result:
    """Run `zlaunch WORDS` in the same way to its end. Raises CommandError if it cannot be started."""
    return process.run(_argv(words), env=_environment(), cwd=trainer.NEUTRAL, check=False)


def _argv(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "launcher", *words]


def _environment() -> dict[str, str]:
    ours = {"ZLAUNCH_RUNS": str(find.runs_root().absolute()), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    ours[spoken.LANGUAGE] = "en"  # the page reads what they print, and shows it in both languages
    return {**os.environ, **ours}


def shown(words: Sequence[str]) -> str:
    """The same command for a person to copy."""
    return shlex.join(["zlaunch", *words])

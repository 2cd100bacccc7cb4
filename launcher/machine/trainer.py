"""Modules of the training program as child processes: their environment, and the meaning of their refusals."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from launcher.machine import installation

ARROW = "  -> "
"""What train/errors.py puts before each hint."""
_ERROR = re.compile(r"error(?:\[(ZL-[A-Z]+-\d+)\])?: ")
"""What stands before the message of an error, in English in every language of the terminal."""


NEUTRAL = installation.train_package().parent
"""Working directory of our own modules that have no run directory.

`python -m` imports from the working directory first. In the user's, a `train.py` or `json.py` would run instead of what
is meant, so `python -m train...` never starts there. (`python -P` exists since 3.11 only.)
"""


def environment(code: Path | None = None, encoding: str = "utf-8:backslashreplace") -> dict[str, str]:
    """This process's environment, where `python -m train...` finds the package in `code`, by default our own.

    `encoding` of the child's output: UTF-8 is what `process.run` reads, whatever the locale. Empty entries of
    PYTHONPATH mean the working directory; `export PYTHONPATH=$PYTHONPATH:/x` makes them by accident.
    """
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", os.curdir)]
    path = [str(code or NEUTRAL), *map(os.path.abspath, given)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONIOENCODING": encoding}


@dataclass(frozen=True)
class Told:
    """What a program of ours printed: an error with each hint after ARROW, perhaps below lines of libraries."""

    before: tuple[str, ...]
    code: str
    message: tuple[str, ...]
    """Empty: no error was told."""
    hint: str | None


def told(stderr: str) -> Told:
    """The first error in what a program of ours wrote to standard error."""
    lines = stderr.strip().splitlines()
    hint = "; ".join(line.removeprefix(ARROW) for line in lines if line.startswith(ARROW)) or None
    lines = [line for line in lines if not line.startswith(ARROW)]
    for number, line in enumerate(lines):
        if found := _ERROR.match(line):
            return Told(tuple(lines[:number]), found[1] or "", (line[found.end() :], *lines[number + 1 :]), hint)
    return Told(tuple(lines), "", (), hint)

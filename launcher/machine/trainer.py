"""Modules of the training program as child processes: their environment, and the meaning of their refusals."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.machine import installation

ARROW = "  -> "
"""What train/errors.py puts before each hint."""


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


def refusal(stderr: str) -> tuple[list[str], str | None]:
    """(lines of the message, hint) of a user's mistake, which train reports with each hint after ARROW."""
    lines = stderr.strip().splitlines()
    advice = [line.removeprefix(ARROW) for line in lines if line.startswith(ARROW)]
    return [line for line in lines if not line.startswith(ARROW)], "; ".join(advice) or None

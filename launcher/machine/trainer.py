"""Modules of the training program as child processes: the environment they need, and what they say when they refuse."""

from __future__ import annotations

import os
from pathlib import Path

from launcher import assets

ARROW = "  -> "
"""What train/errors.py puts before each advice."""


def environment(code: Path | None = None) -> dict[str, str]:
    """Our own environment, in which `python -m train...` finds `code`, a directory that holds the package; default: our
    own."""
    path = [str(code or assets.train_package().parent), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def refusal(stderr: str) -> tuple[list[str], str | None]:
    """(lines of the message, hint) of a user's mistake, which train tells with each advice behind `  -> `."""
    lines = stderr.strip().splitlines()
    advice = [line.removeprefix(ARROW) for line in lines if line.startswith(ARROW)]
    return [line for line in lines if not line.startswith(ARROW)], "; ".join(advice) or None

"""Modules of the training program as child processes: their environment, and the meaning of their refusals."""

from __future__ import annotations

import os
from pathlib import Path

from launcher import assets

ARROW = "  -> "
"""What train/errors.py puts before each hint."""


def environment(code: Path | None = None) -> dict[str, str]:
    """This process's environment, where `python -m train...` finds the package in `code`, by default our own."""
    path = [str(code or assets.train_package().parent), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def refusal(stderr: str) -> tuple[list[str], str | None]:
    """(lines of the message, hint) of a user's mistake, which train reports with each hint after ARROW."""
    lines = stderr.strip().splitlines()
    advice = [line.removeprefix(ARROW) for line in lines if line.startswith(ARROW)]
    return [line for line in lines if not line.startswith(ARROW)], "; ".join(advice) or None

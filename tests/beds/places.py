"""Where things lie in the checkout, and other Pythons on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")


def python_of(version: str) -> str:
    """The path of a Python such as 3.8, which hosts may have. Skips the test where this machine has none."""
    python = next(PYENV.glob(f"{version}.*/bin/python"), None)
    if python is None:
        pytest.skip(f"no Python {version} here")
    return str(python)

"""Where the files that are not Python lie: templates, the Dockerfile and its requirements, the Slurm script.

In a checkout they stand beside the package; in a wheel they travel inside it (pyproject.toml maps them). Nothing else
in the project may guess these places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["templates", "docker", "slurm"]

PACKAGE = Path(__file__).resolve().parent
"""The launcher package itself, wherever it is installed."""


def path(kind: Kind) -> Path:
    """The directory of that kind; FileNotFoundError means a broken installation."""
    for candidate in (PACKAGE / kind, PACKAGE.parent / kind):
        # A wheel's own directory wins, so that an unrelated `docker/` beside site-packages is never taken.
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{kind}/ lies neither in {PACKAGE} nor beside it: is the installation complete?")


def agent_sources() -> dict[str, Path]:
    """{path below code/ of a run directory: file or directory} of the node's agent and what it imports."""
    node = PACKAGE / "node"
    return {**{f"node/{file.name}": file for file in sorted(node.glob("*.py"))}, "node/agent": node / "agent"}


def train_package() -> Path:
    """Directory of the training program's sources, copied into every run directory. Does not import it."""
    return PACKAGE.parent / "train"

"""Where the files that are not Python are: templates, the Dockerfile and its requirements, the Slurm script.

In a checkout they are beside the package, in a wheel inside it (pyproject.toml maps them). Only this module knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["templates", "docker", "slurm"]

PACKAGE = Path(__file__).resolve().parents[1]
"""The installed package `launcher`."""


def path(kind: Kind) -> Path:
    """The directory of that kind. Raises FileNotFoundError for a broken installation."""
    for candidate in (PACKAGE / kind, PACKAGE.parent / kind):
        # The wheel's own directory comes first: a `docker/` beside site-packages may be another project's.
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{kind}/ is neither in {PACKAGE} nor beside it: is the installation complete?")


def agent_sources() -> dict[str, Path]:
    """{path in code/ of a run directory: file or directory} of the agent and everything that it imports."""
    node = PACKAGE / "node"
    own = {f"node/{file.name}": file for file in sorted(node.glob("*.py"))}
    return {**own, **{f"node/{name}": node / name for name in ("agent", "companions")}}


def train_package() -> Path:
    """The directory of the training program, which every run directory gets a copy of. Does not import it."""
    return PACKAGE.parent / "train"

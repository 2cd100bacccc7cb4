"""What is installed: its source revision, and the files that are not Python (templates, Dockerfile, Slurm script).

In a checkout they are beside the package, in a wheel inside it (pyproject.toml maps them). Only this module knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from launcher.errors import TargetError
from launcher.machine import process

UNKNOWN = "unknown"
REVISION_FILE = "revision.txt"
"""In the package of a wheel or an image; hatch_build.py and `zlaunch build` write it."""
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


def source_revision() -> str:
    """The commit of this zlaunch, with `-dirty` for changed files; `unknown` where nothing tells it.

    A wheel and an image have it in a file that their build wrote. A checkout asks git.
    """
    written, root = PACKAGE / REVISION_FILE, PACKAGE.parent
    try:
        if written.is_file():
            return written.read_text(encoding="utf-8").strip() or UNKNOWN
        if not (root / ".git").exists():  # git would tell of a repository around site-packages
            return UNKNOWN
        commit = process.run(["git", "-C", root, "rev-parse", "HEAD"], timeout=20).stdout.strip()
        changed = process.run(["git", "-C", root, "status", "--porcelain", "-uno"], timeout=20).stdout.strip()
    except (TargetError, OSError, ValueError):
        return UNKNOWN
    return commit + ("-dirty" if changed else "")

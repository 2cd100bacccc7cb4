"""Where Slurm's commands run: on this machine, or on a login host of the cluster (login_shell.py).

Both implement the same few methods, so the backend is written once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launcher.backends.slurm.sbatch_variables import is_foreign
from launcher.backends.slurm.synced_files import MIRRORED
from launcher.machine import process
from launcher.machine.process import Result
from launcher.rundir import directory

if TYPE_CHECKING:
    from launcher.rundir.directory import RunDir

TIMEOUT = 30.0
"""Seconds for one of Slurm's commands. A controller that is down makes them wait for about ten."""


class Shell(Protocol):
    name: str
    """The cluster of this machine, or a login host. Watchers of one name share a cache of Slurm's answers."""

    def run(
        self, argv: Sequence[str], *, cwd: str | None = None, hide: Sequence[str] = (), timeout: float = TIMEOUT
    ) -> Result:
        """Run a command in the cluster's directory `cwd`, without the variables `hide`. Any exit status is returned.

        Raises TargetError when the command cannot be started or does not answer.
        """

    def path_there(self, path: Path) -> str:
        """Return the path on the cluster that stands for the launcher's `path`."""

    def send(self, paths: Sequence[Path]) -> None:
        """Copy directories to the cluster."""

    def link_inputs(self, run: RunDir, inputs: Mapping[str, str]) -> None:
        """Put input files of this machine into a run directory that was sent; `inputs`: {path here: name in there}."""

    def fetch(self, run: RunDir, names: Sequence[str] = MIRRORED) -> list[str] | None:
        """Copy what the run has written under those names; return the names of the files copied.

        None: they are here already. Raises TargetError when the cluster is out of reach.
        """

    def write_secrets(self, path: Path, values: Mapping[str, str]) -> None:
        """Write a file that only its owner may read, where the cluster finds `path`."""

    def write(self, path: Path, text: str) -> None:
        """Write a file of a run directory, below one of its folders."""

    def remove(self, path: Path) -> None:
        """Remove a file. An absent one is no error."""


class LocalShell:
    """Slurm's commands on this machine; run directories lie on the cluster's shared file system."""

    def __init__(self) -> None:
        self.name = f"local:{os.environ.get('SLURM_CONF', '')}"

    def run(
        self, argv: Sequence[str], *, cwd: str | None = None, hide: Sequence[str] = (), timeout: float = TIMEOUT
    ) -> Result:
        environ = {name: value for name, value in os.environ.items() if name not in hide and not is_foreign(name)}
        return process.run(argv, timeout=timeout, cwd=cwd, env=environ, check=False)

    def path_there(self, path: Path) -> str:
        return str(path)

    def send(self, paths: Sequence[Path]) -> None:
        pass

    def link_inputs(self, run: RunDir, inputs: Mapping[str, str]) -> None:
        pass

    def fetch(self, run: RunDir, names: Sequence[str] = MIRRORED) -> list[str] | None:
        return None

    def write_secrets(self, path: Path, values: Mapping[str, str]) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(dict(values), file)

    def write(self, path: Path, text: str) -> None:
        directory.write_atomic(path, text)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

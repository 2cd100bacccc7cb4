"""Where Slurm's commands run: on this machine, or on a login host of the cluster (login_shell.py).

Both know the same few verbs, so that the backend is written once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launcher.backends.slurm.home_files import MIRRORED
from launcher.machine import process
from launcher.machine.process import Result
from launcher.rundir import directory

if TYPE_CHECKING:
    from launcher.rundir.directory import RunDir

TIMEOUT = 30.0
"""Seconds for one of Slurm's commands: a controller that is down makes them wait for about ten."""


class Shell(Protocol):
    name: str
    """What the state cache is shared by: the cluster this machine belongs to, or a login host."""

    def run(self, argv: Sequence[str], *, cwd: str | None = None, hide: Sequence[str] = ()) -> Result:
        """Run a command in the cluster's directory `cwd`, without the variables `hide`; never raises for its status.

        Raises TargetError when it cannot be started or does not answer.
        """

    def place(self, path: Path) -> str:
        """The directory on the cluster that stands for the launcher's `path`."""

    def send(self, paths: Sequence[Path]) -> None:
        """Bring directories to the cluster."""

    def give(self, run: RunDir, inputs: Mapping[str, str]) -> None:
        """Lay input files of the launcher's machine into a run directory that was sent: {path: name in there}."""

    def fetch(self, run: RunDir, names: Sequence[str] = MIRRORED) -> list[str] | None:
        """Bring what the run has written under those names; the files that came.

        None: they are here already. Raises TargetError when the cluster cannot be reached.
        """

    def write_secret(self, path: Path, values: Mapping[str, str]) -> None:
        """A file that only its owner may read, where the cluster finds `path`."""

    def remove(self, path: Path) -> None: ...

    def touch(self, path: Path, text: str) -> None: ...


class LocalShell:
    """Slurm's commands on this machine; the run directory lies on the cluster's shared file system."""

    def __init__(self) -> None:
        self.name = f"local:{os.environ.get('SLURM_CONF', '')}"

    def run(self, argv: Sequence[str], *, cwd: str | None = None, hide: Sequence[str] = ()) -> Result:
        environ = {name: value for name, value in os.environ.items() if name not in hide and not _of_a_job(name)}
        return process.run(argv, timeout=TIMEOUT, cwd=cwd, env=environ, check=False)

    def place(self, path: Path) -> str:
        return str(path)

    def send(self, paths: Sequence[Path]) -> None:
        pass

    def give(self, run: RunDir, inputs: Mapping[str, str]) -> None:
        pass

    def fetch(self, run: RunDir, names: Sequence[str] = MIRRORED) -> list[str] | None:
        return None

    def write_secret(self, path: Path, values: Mapping[str, str]) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(dict(values), file)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def touch(self, path: Path, text: str) -> None:
        directory.write_atomic(path, text)


_JOB_PREFIXES = ("SLURM_JOB", "SLURM_STEP", "SLURM_TASK", "SLURM_NODE", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NNODES",
                 "SLURM_CPUS", "SLURM_MEM", "SLURM_GPUS", "SLURM_TRES", "SLURM_ARRAY", "SLURM_RESTART", "SLURM_SUBMIT",
                 "SLURM_PROCID", "SLURM_LOCALID", "SLURM_EXPORT")  # fmt: skip


def _of_a_job(name: str) -> bool:
    """Variables of the job that zlaunch itself runs in (salloc, a job that submits jobs): not for a new job."""
    return name.startswith(_JOB_PREFIXES)

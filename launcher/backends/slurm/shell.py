"""Where Slurm's commands run: on this machine, or on a login host of the cluster (login_shell.py).

Both implement the same few methods, so the backend is written once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
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

TOOLS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol", "sinfo")
CLUSTER_VARIABLES = ("SLURM_CLUSTERS", "SBATCH_CLUSTERS")
"""They choose a cluster, as -M does."""


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

    def remove_run(self, run_id: str, *, dry_run: bool) -> int | None:
        """Remove the directory of a run or a sweep on the cluster and return the bytes that this frees; `dry_run`: only
        count them.

        None: it is the one here. Raises TargetError.
        """


def name_of(login: str | None, clusters: Sequence[str] = ()) -> str:
    """Return the name of the shell that reaches these clusters from a login host, or from this machine."""
    base = f"login:{login}" if login else f"local:{os.environ.get('SLURM_CONF', '')}"
    return f"{base} -M {','.join(clusters)}" if clusters else base


class LocalShell:
    """Slurm's commands on this machine; run directories lie on the cluster's shared file system."""

    def __init__(self) -> None:
        self.name = name_of(None)

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

    def remove_run(self, run_id: str, *, dry_run: bool) -> int | None:
        return None


class ClusterShell:
    """A shell whose Slurm commands go to other clusters (`-M`), or to one of several.

    A cluster that is the shell's own needs no -M, and so no accounting daemon either.
    """

    def __init__(self, shell: Shell, clusters: Sequence[str]) -> None:
        self.name = f"{shell.name} -M {','.join(clusters)}"
        self._shell, self._clusters = shell, tuple(clusters)
        self._is_own: bool | None = None
        self.path_there, self.send, self.link_inputs, self.fetch = (
            shell.path_there, shell.send, shell.link_inputs, shell.fetch,
        )  # fmt: skip
        self.write_secrets, self.write, self.remove = shell.write_secrets, shell.write, shell.remove
        self.remove_run = shell.remove_run

    def run(
        self, argv: Sequence[str], *, cwd: str | None = None, hide: Sequence[str] = (), timeout: float = TIMEOUT
    ) -> Result:
        if argv[0] not in TOOLS:
            return self._shell.run(argv, cwd=cwd, hide=hide, timeout=timeout)
        # scontrol takes one cluster at a time.
        groups = self._clusters if argv[0] == "scontrol" else [",".join(self._clusters)]
        results = []
        for names in groups:
            words = [argv[0], *([] if self._own() else [f"--clusters={names}"]), *argv[1:]]
            results.append(self._shell.run(words, cwd=cwd, hide=[*hide, *CLUSTER_VARIABLES], timeout=timeout))
        worst = max(results, key=lambda result: abs(result.code))
        return replace(worst, stdout="".join(result.stdout for result in results))

    def _own(self) -> bool:
        if self._is_own is None:
            shown = self._shell.run(["scontrol", "show", "config"], hide=CLUSTER_VARIABLES)
            if shown.code != 0:  # ask again next time
                return False
            own = re.search(r"^ClusterName\s*=\s*(\S+)", shown.stdout, re.MULTILINE)
            self._is_own = own is not None and self._clusters == (own[1],)
        return self._is_own

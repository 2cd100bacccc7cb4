"""Slurm's commands on a login host of the cluster, over SSH (Fabric), for a launcher that runs on a laptop."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from launcher import connect
from launcher.errors import TargetError
from launcher.process import Result
from launcher.slurm_shell import TIMEOUT

if TYPE_CHECKING:
    from launcher.runs import RunDir

MIRRORED = (
    "nodes", "events.jsonl", "metrics.jsonl", "result.json", "errors", "logs", "slurm.log", "hostfile", "adapter",
)  # fmt: skip
"""What the launcher's copy of a run on a login host is kept up to date with; checkpoints stay there."""


class LoginShell:
    """Slurm's commands on a login host; run directories lie under `workdir` there, with the same names as here."""

    def __init__(self, login: str, workdir: str | None, options: connect.Options | None = None) -> None:
        self.name = f"login:{login}"
        self.login = login
        self.options = options or connect.Options()
        self._workdir = workdir or "~/zlaunch"
        self._connection: Any = None

    def _open(self) -> Any:
        if self._connection is None or not self._connection.is_connected:
            connection = connect.prepare(self.login, self.options)
            try:
                connection.open()
            except Exception as error:  # Fabric, paramiko and the operating system each have their own
                why = connect.explain(error, connection, self.options.connect_timeout)
                raise TargetError(f"slurm.login: {why}", hint=f"does `ssh {self.login}` work?") from error
            self._connection = connection
            home = connection.run(f"cd && mkdir -p -- {_tilde(self._workdir)} && cd -- {_tilde(self._workdir)} && pwd",
                                  hide=True, in_stream=False)  # fmt: skip
            self._workdir = home.stdout.splitlines()[-1]
        return self._connection

    def run(self, argv: Sequence[str], *, cwd: str | None = None, hide: Sequence[str] = ()) -> Result:
        words = shlex.join(argv)
        if cwd is not None:
            words = f"cd -- {shlex.quote(cwd)} && {words}"
        connection = self._open()
        try:
            # A login shell: on many sites Slurm's commands come with the profile.
            answer = connection.run(f"bash -lc {shlex.quote(words)}", hide=True, warn=True, in_stream=False,
                                    timeout=TIMEOUT)  # fmt: skip
        except Exception as error:
            self._connection = None
            raise TargetError(f"slurm.login: {self.login}: {argv[0]}: {error}") from error
        return Result(tuple(argv), int(answer.exited), answer.stdout, answer.stderr, 0.0)

    def place(self, path: Path) -> str:
        self._open()
        parent = "sweeps/" if path.parent.name == "sweeps" else ".secrets/" if path.parent.name == ".secrets" else ""
        return f"{self._workdir}/{parent}{path.name}"

    def send(self, paths: Sequence[Path]) -> None:
        connection = self._open()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            for path in paths:
                name = self.place(path).removeprefix(f"{self._workdir}/")
                tar.add(path, arcname=name, filter=_sendable)
        archive.seek(0)
        remote = f"{self._workdir}/.incoming-{os.getpid()}.tar.gz"
        connection.put(archive, remote)
        there = shlex.quote(remote)
        words = f"tar -xzf {there} -C {shlex.quote(self._workdir)}; s=$?; rm -f {there}; exit $s"
        answer = connection.run(words, hide=True, warn=True, in_stream=False)
        if not answer.ok:
            raise TargetError(f"{self.login}: cannot unpack the run directory: {answer.stderr.strip()}")

    def fetch(self, run: RunDir) -> None:
        connection = self._open()
        remote = f"{self._workdir}/.outgoing-{os.getpid()}.tar.gz"
        names = " ".join(shlex.quote(name) for name in MIRRORED)
        words = (
            f"cd -- {shlex.quote(self.place(run.path))} && "
            f"tar -czf {shlex.quote(remote)} $(ls -d {names} 2>/dev/null) 2>/dev/null; test -s {shlex.quote(remote)}"
        )
        if not connection.run(words, hide=True, warn=True, in_stream=False).ok:
            return
        archive = io.BytesIO()
        connection.get(remote, archive)
        connection.run(f"rm -f {shlex.quote(remote)}", hide=True, warn=True, in_stream=False)
        archive.seek(0)
        shutil.rmtree(run.nodes_dir, ignore_errors=True)  # a new start moves the old records away
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            tar.extractall(run.path, filter="data")

    def write_secret(self, path: Path, values: Mapping[str, str]) -> None:
        connection = self._open()
        remote = self.place(path)
        folder = shlex.quote(str(PurePosixPath(remote).parent))
        words = f"umask 077 && mkdir -p -- {folder} && : > {shlex.quote(remote)}"
        connection.run(words, hide=True, in_stream=False)
        connection.put(io.BytesIO(json.dumps(dict(values)).encode()), remote)  # the file keeps its mode

    def remove(self, path: Path) -> None:
        self.run(["rm", "-f", "--", self.place(path)])

    def touch(self, path: Path, text: str) -> None:
        run, name = path.parent.parent, f"{path.parent.name}/{path.name}"
        directory = self.place(run)
        write = 'mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"'
        self.run(["bash", "-c", write, "-", f"{directory}/{name}", text])


def _tilde(path: str) -> str:
    """A path quoted for a shell, its leading `~/` left for the shell to expand."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


def _sendable(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    left_out = ("/checkpoints", "/adapter", "/__pycache__", "/run.json")
    return None if any(part in f"/{info.name}" for part in left_out) else info

"""Slurm's commands on a login host of the cluster, over SSH (Fabric), for a launcher that runs on a laptop."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from launcher.backends.slurm.home_files import CHECKPOINTS, MIRRORED, NOT_SENT, STORE
from launcher.backends.slurm.shell import TIMEOUT
from launcher.errors import TargetError
from launcher.machine.process import Result
from launcher.remote import connect

if TYPE_CHECKING:
    from launcher.rundir.directory import RunDir


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
            where = _tilde(self._workdir)
            try:
                home = self._line(f"cd && mkdir -p -- {where} && cd -- {where} && pwd", f"make {self._workdir}")
            except TargetError:
                self._connection = None
                raise
            self._workdir = home.splitlines()[-1]
        return self._connection

    @contextlib.contextmanager
    def _talk(self, what: str) -> Iterator[Any]:
        """The open connection. What goes wrong with it ends it, and is a TargetError that says what it kept us from."""
        connection = self._open()
        try:
            yield connection
        except Exception as error:  # Fabric, paramiko, its SFTP and the operating system each have their own
            self._connection = None
            with contextlib.suppress(Exception):  # it is being thrown away
                connection.close()
            raise TargetError(f"slurm.login: {self.login}: cannot {what}: {error or type(error).__name__}") from error

    def _ask(self, words: str, what: str, timeout: float | None = None) -> Any:
        """Have the login host's shell run a line, whatever its status is."""
        with self._talk(what) as connection:
            return connection.run(words, hide=True, warn=True, in_stream=False, timeout=timeout)

    def _line(self, words: str, what: str) -> str:
        """The output of a line that must succeed. Raises TargetError."""
        answer = self._ask(words, what)
        if not answer.ok:
            raise TargetError(f"slurm.login: {self.login}: cannot {what}: {answer.stderr.strip()}")
        return str(answer.stdout)

    def _put(self, file: IO[bytes], remote: str, what: str) -> None:
        """Write a file that nobody else may read: it is made first, and keeps its mode."""
        name = shlex.quote(remote)
        folder = shlex.quote(str(PurePosixPath(remote).parent))
        self._line(f"umask 077 && mkdir -p -- {folder} && : > {name}", what)
        with self._talk(what) as connection:
            connection.put(file, remote)

    def run(self, argv: Sequence[str], *, cwd: str | None = None, hide: Sequence[str] = ()) -> Result:
        words = shlex.join(argv)
        if cwd is not None:
            words = f"cd -- {shlex.quote(cwd)} && {words}"
        # A login shell: on many sites Slurm's commands come with the profile.
        answer = self._ask(f"bash -lc {shlex.quote(words)}", f"run {argv[0]}", TIMEOUT)
        return Result(tuple(argv), int(answer.exited), answer.stdout, answer.stderr, 0.0)

    def place(self, path: Path) -> str:
        self._open()
        parent = "sweeps/" if path.parent.name == "sweeps" else ".secrets/" if path.parent.name == ".secrets" else ""
        return f"{self._workdir}/{parent}{path.name}"

    def send(self, paths: Sequence[Path]) -> None:
        names = {self.place(path).removeprefix(f"{self._workdir}/"): path for path in paths}
        self._unpack(names, ".", "the run directory")

    def give(self, run: RunDir, inputs: Mapping[str, str]) -> None:
        """Each file is sent once, kept by its hash, and linked hard into the run directories that read it: a container
        sees no more of the host than the run directory."""
        if not inputs:
            return
        here = self.place(run.path)
        store = f"{self._workdir}/{STORE}"
        links = {link.removeprefix("inputs/"): Path(path) for path, link in inputs.items()}
        absent = self._checked(["bash", "-c", 'cd -- "$0" 2>/dev/null; for f; do [ -e "$f" ] || echo "$f"; done',
                                store, *links], "look for the input files").splitlines()  # fmt: skip
        if absent:
            self._unpack({name: links[name] for name in absent}, STORE, "the input files")
        lay = (
            'for f; do [ -e "inputs/$f" ] && continue; mkdir -p -- "$(dirname -- "inputs/$f")" && '
            '{ cp -rl -- "$0/$f" "inputs/$f" 2>/dev/null || cp -r -- "$0/$f" "inputs/$f"; } || exit 1; done'
        )
        self._checked(["bash", "-c", lay, store, *links], "lay out the input files", cwd=here)

    def _checked(self, argv: Sequence[str], what: str, *, cwd: str | None = None) -> str:
        result = self.run(argv, cwd=cwd)
        if result.code != 0:
            raise TargetError(f"slurm.login: {self.login}: cannot {what}: {' '.join(result.last_lines)}")
        return result.stdout

    def _unpack(self, names: Mapping[str, Path], below: str, what: str) -> None:
        """Send files and directories: {name below the directory `below` of the working directory: path here}.

        Below the store they appear whole or not at all: another run may look for them meanwhile.
        """
        token = uuid.uuid4().hex[:8]
        remote, workdir = f"{self._workdir}/.incoming-{token}.tar.gz", shlex.quote(self._workdir)
        with tempfile.TemporaryFile() as archive:
            # Data may be links here (a hub's cache is made of them); the files themselves are what must travel.
            with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=3, dereference=below == STORE) as tar:
                for name, path in names.items():
                    tar.add(path, arcname=name, filter=None if below == STORE else sendable)
            archive.seek(0)
            self._put(archive, remote, f"send {what}")
        there = shlex.quote(remote)
        words = f"tar -xzf {there} -C {workdir}"
        if below == STORE:
            new = f"{self._workdir}/.incoming-{token}"
            tops = " ".join(dict.fromkeys(shlex.quote(name.partition("/")[0]) for name in names))
            words = (
                f"umask 077 && cd {workdir} && mkdir -p {STORE} {shlex.quote(new)} && "
                f"tar -xzf {there} -C {shlex.quote(new)} && "
                f"(cd {shlex.quote(new)} && for top in {tops}; do mv -nT -- $top ../{STORE}/$top; done); "
                f"s=$?; rm -rf {shlex.quote(new)}; (exit $s)"
            )
        self._line(f"{words}; s=$?; rm -f {there}; exit $s", f"unpack {what}")

    def fetch(self, run: RunDir, names: Sequence[str] = MIRRORED) -> list[str] | None:
        place = shlex.quote(self.place(run.path))
        remote = f"{self._workdir}/.outgoing-{uuid.uuid4().hex[:8]}.tar.gz"
        there = shlex.quote(remote)
        plain = " ".join(shlex.quote(name) for name in names if name != CHECKPOINTS)
        complete = "$(ls -d checkpoints/step-*/COMPLETE 2>/dev/null | xargs -r dirname)" if CHECKPOINTS in names else ""
        # A file that grows while it is read is no error, it comes whole the next time.
        words = (
            f"cd -- {place} && umask 077 && "
            f"tar -czf {there} $(ls -d {plain} 2>/dev/null) {complete} 2>/dev/null; test -s {there}"
        )
        if not self._ask(words, "pack the run's files").ok:
            return []
        with tempfile.TemporaryFile() as archive:
            with self._talk("fetch the run's files") as connection:
                connection.get(remote, archive)
            self._ask(f"rm -f {there}", "remove what was fetched")
            archive.seek(0)
            came = _lay_out(archive, run.path)
        if "nodes" in names:  # a new start moves the old records away
            for record in set(run.nodes_dir.glob("node-*.json")) - {run.path / name for name in came}:
                record.unlink(missing_ok=True)
        return came

    def write_secret(self, path: Path, values: Mapping[str, str]) -> None:
        self._put(io.BytesIO(json.dumps(dict(values)).encode()), self.place(path), "write the file of secrets")

    def remove(self, path: Path) -> None:
        self.run(["rm", "-f", "--", self.place(path)])

    def touch(self, path: Path, text: str) -> None:
        run, name = path.parent.parent, f"{path.parent.name}/{path.name}"
        directory = self.place(run)
        write = 'mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"'
        self._checked(["bash", "-c", write, "-", f"{directory}/{name}", text], f"write {name}")


def _lay_out(archive: IO[bytes], root: Path) -> list[str]:
    """Unpack below `root`, each file whole into its place: other commands read there meanwhile. The files' names."""
    with tempfile.TemporaryDirectory(dir=root, prefix=".incoming-") as folder:
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            came = [member.name for member in tar.getmembers() if member.isfile()]
            tar.extractall(folder, filter="data")
        for name in sorted(came, key=lambda name: name.endswith("/COMPLETE")):  # a checkpoint counts once that is there
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(folder, name), root / name)
    return came


def _tilde(path: str) -> str:
    """A path quoted for a shell, its leading `~/` left for the shell to expand."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


def sendable(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what a run directory holds under a name of NOT_SENT; deeper down a name means something else."""
    _, *below = PurePosixPath(info.name).parts
    return None if below and below[0] in NOT_SENT else info

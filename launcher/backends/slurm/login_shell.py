"""Slurm's commands on a login host of the cluster, over SSH, for a launcher on a laptop."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import tarfile
import tempfile
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, cast

from launcher.backends.slurm.sbatch_variables import CLEAN
from launcher.backends.slurm.shell import TIMEOUT, name_of
from launcher.backends.slurm.synced_files import CHECKPOINTS, MIRRORED, NOT_SENT, STORE
from launcher.errors import TargetError
from launcher.machine.byte_progress import ByteProgress, Counted
from launcher.machine.process import Result
from launcher.node import run_files
from launcher.remote import connect
from launcher.remote.session import for_any_shell
from launcher.rundir.foreign_archive import unpack_foreign

if TYPE_CHECKING:
    from launcher.rundir.directory import RunDir

MISSING_INPUTS = 'cd -- "$0" 2>/dev/null; for f; do [ -e "$f" ] || echo "$f"; done'
"""bash: print the arguments that name no file below the directory $0."""
LINK_INPUTS = (
    'for f; do [ -e "inputs/$f" ] && continue; mkdir -p -- "$(dirname -- "inputs/$f")" && '
    '{ cp -rl -- "$0/$f" "inputs/$f" 2>/dev/null || cp -r -- "$0/$f" "inputs/$f"; } || exit 1; done'
)
"""bash: link (or copy) the arguments from the store $0 into inputs/."""

PACKED = "zlaunch-packed"
PACK_RESULTS = (
    'cd -- "$0" || exit; archive=$1 checkpoints=$2; shift 2; umask 077; '
    'for f; do shift; [ -e "$f" ] && set -- "$@" "$f"; done; '
    '[ -z "$checkpoints" ] || for f in checkpoints/step-*/COMPLETE; do [ -e "$f" ] && set -- "$@" "${f%/*}"; done; '
    # No links: an archive with links is refused here (rundir/foreign_archive.py).
    # tar's exit status does not tell: it fails for a file that grows meanwhile, which the next fetch completes.
    '[ $# = 0 ] || { said=$(tar -czhf "$archive" --hard-dereference -- "$@" 2>&1); '
    f'[ -s "$archive" ] && echo {PACKED} || '
    '{ printf "%s\\n" "$said" >&2; rm -f -- "$archive"; exit 1; }; }'
)
"""bash: pack what exists of the arguments, and complete checkpoints if asked, from the run directory $0; say so."""


REMOVE_RUN = (
    'cd -- "$0" || exit; '
    'if [ -L "$1" ]; then echo "$0/$1 is a symbolic link: remove it and what it leads to yourself" >&2; exit 1; fi; '
    "case $1 in */*) aside=${1%/*}/.removing-${1##*/} ;; *) aside=.removing-$1 ;; esac; freed=0; "
    'for f in "$1" "$aside"; do [ ! -e "$f" ] || freed=$((freed + $(du -s -B1 -- "$f" | cut -f1))); done; '
    '[ -z "$2" ] || { rm -f -- ".secrets/$1.json" && { [ ! -e "$1" ] || { rm -rf -- "$aside" && '
    'mv -T -- "$1" "$aside"; }; } && rm -rf -- "$aside"; } && echo "$freed"'
)
"""bash: print the bytes of the directory $1 below the working directory $0, and remove it if there is a $2."""
REMOVAL_SECONDS = 600.0


class LoginShell:
    """Slurm's commands on a login host. Run directories lie under `workdir` there, with the same names as here."""

    def __init__(self, login: str, workdir: str | None, options: connect.Options | None = None) -> None:
        self.name = name_of(login)
        self.login = login
        self.options = options or connect.Options()
        self._asked_workdir = workdir or "~/zlaunch"
        self._found_workdir = ""
        """The absolute path of the working directory; empty until the first connection."""
        self._connection: Any = None

    # The connection

    def _open(self) -> Any:
        if self._connection is None or not self._connection.is_connected:
            try:
                connection = connect.Connection(self.login, self.options)
                connection.open()
            except TargetError as error:
                raise TargetError(
                    f"slurm.login: {error}", hint=f"does `ssh {self.login}` work?", code="ZL-SLURM-05"
                ) from error
            self._connection = connection
            where = _quote_path(self._asked_workdir)
            try:
                made = self._run_line(
                    f"cd && mkdir -p -- {where} && cd -- {where} && pwd", f"make {self._asked_workdir}"
                )
            except TargetError:
                self._connection = None
                raise
            self._found_workdir = (made.splitlines() or [""])[-1]
            if not self._found_workdir.startswith("/") or not self._found_workdir.isprintable():
                self._connection = None
                raise TargetError(
                    f"slurm.login: {self.login}: {self._asked_workdir} is no directory there: {made!r}",
                    code="ZL-SLURM-05",
                )
        return self._connection

    @property
    def _workdir(self) -> str:
        """The absolute path of the working directory there. Only the login host knows where `~` is."""
        if not self._found_workdir:
            self._open()
        return self._found_workdir

    @contextlib.contextmanager
    def _use_connection(self, what: str) -> Iterator[Any]:
        """Yield the open connection; drop it after an error. Raises TargetError: "cannot `what`"."""
        connection = self._open()
        try:
            yield connection
        except Exception as error:  # paramiko, its SFTP and the operating system each have their own
            self._connection = None
            with contextlib.suppress(Exception):  # it is being thrown away
                connection.close()
            raise TargetError(
                f"slurm.login: {self.login}: cannot {what}: {error or type(error).__name__}", code="ZL-SLURM-05"
            ) from error

    def _try_line(self, line: str, what: str, timeout: float | None = None) -> Any:
        """Run a line of sh on the login host; return its result whatever the exit status."""
        with self._use_connection(what) as connection:
            return connection.run(for_any_shell(f"exec sh -c {shlex.quote(line)}"), timeout)

    def _run_line(self, line: str, what: str) -> str:
        """Return the output of a line that must succeed. Raises TargetError."""
        result = self._try_line(line, what)
        if not result.ok:
            raise TargetError(f"slurm.login: {self.login}: cannot {what}: {result.stderr.strip()}", code="ZL-SLURM-05")
        return str(result.stdout)

    def run(
        self, argv: Sequence[str], *, cwd: str | None = None, hide: Sequence[str] = (), timeout: float = TIMEOUT
    ) -> Result:
        line = f"{CLEAN}; unset -v {shlex.join(hide)}; {shlex.join(argv)}" if hide else f"{CLEAN}; {shlex.join(argv)}"
        if cwd is not None:
            line = f"cd -- {shlex.quote(cwd)} && {line}"
        # A login shell: on many sites Slurm's commands come with the profile.
        result = self._try_line(f"exec bash -lc {shlex.quote(line)}", f"run {argv[0]}", timeout)
        return Result(tuple(argv), int(result.exited), result.stdout, result.stderr, 0.0)

    def _run_checked(self, argv: Sequence[str], what: str, *, cwd: str | None = None) -> str:
        result = self.run(argv, cwd=cwd)
        if result.code != 0:
            raise TargetError(
                f"slurm.login: {self.login}: cannot {what}: {' '.join(result.last_lines)}", code="ZL-SLURM-05"
            )
        return result.stdout

    # Files to the cluster

    def path_there(self, path: Path) -> str:
        parent = f"{path.parent.name}/" if path.parent.name in ("sweeps", ".secrets") else ""
        return f"{self._workdir}/{parent}{path.name}"

    def send(self, paths: Sequence[Path]) -> None:
        names = {self.path_there(path).removeprefix(f"{self._workdir}/"): path for path in paths}
        with tempfile.TemporaryFile() as archive:
            _pack(archive, names, skip=True)
            remote, unpack = self._upload(archive, "send the run directory"), shlex.quote(self._workdir)
        # Not tar's -C, which reads backslashes in its directory as escapes.
        self._unpack(remote, f"cd {unpack} && tar -xzf {shlex.quote(remote)}", "unpack the run directory")

    def link_inputs(self, run: RunDir, inputs: Mapping[str, str]) -> None:
        """Send each file once, keep it by its hash, and hard-link it into the run directories that read it.

        A container sees no more of the host than the run directory, so a symbolic link would lead nowhere.
        """
        if not inputs:
            return
        run_dir, store = self.path_there(run.path), f"{self._workdir}/{STORE}"
        files = {link.removeprefix("inputs/"): Path(path) for path, link in inputs.items()}
        look = ["bash", "-c", MISSING_INPUTS, store, *files]
        if missing := self._run_checked(look, "look for the input files").splitlines():
            self._send_to_store({name: files[name] for name in missing if name in files})
        self._run_checked(["bash", "-c", LINK_INPUTS, store, *files], "lay out the input files", cwd=run_dir)

    def _send_to_store(self, names: Mapping[str, Path]) -> None:
        """Send input files; in the store they appear whole or not at all, because another run may look for them."""
        with tempfile.TemporaryFile() as archive:
            # Data may be links here (a hub's cache is made of them); the files themselves must travel.
            _pack(archive, names, dereference=True)
            remote = self._upload(archive, "send the input files")
        new = shlex.quote(remote.removesuffix(".tar.gz"))
        tops = " ".join(dict.fromkeys(shlex.quote(name.partition("/")[0]) for name in names))
        line = (
            f"umask 077 && cd {shlex.quote(self._workdir)} && mkdir -p {STORE} {new} && "
            f"tar -xzf {shlex.quote(remote)} -C {new} && "
            f"(cd {new} && for top in {tops}; do mv -nT -- $top ../{STORE}/$top; done); "
            f"s=$?; rm -rf {new}; (exit $s)"
        )
        self._unpack(remote, line, "unpack the input files")

    def _upload(self, archive: IO[bytes], what: str) -> str:
        """Upload an archive under a new name in the working directory; return its path there."""
        remote = f"{self._workdir}/.incoming-{uuid.uuid4().hex[:8]}.tar.gz"
        progress = ByteProgress(f"{self.login}: {what}", archive.seek(0, io.SEEK_END))
        archive.seek(0)
        self._put(cast(IO[bytes], Counted(archive, progress)), remote, what)
        return remote

    def _unpack(self, remote: str, line: str, what: str) -> None:
        self._run_line(f"{line}; s=$?; rm -f {shlex.quote(remote)}; exit $s", what)

    def _put(self, file: IO[bytes], remote: str, what: str) -> None:
        """Write a file that nobody else may read: make it first with that mode, which it then keeps."""
        name = shlex.quote(remote)
        folder = shlex.quote(str(PurePosixPath(remote).parent))
        self._run_line(f"umask 077 && mkdir -p -- {folder} && : > {name}", what)
        with self._use_connection(what) as connection:
            connection.put(file, remote)

    def write_secrets(self, path: Path, values: Mapping[str, str]) -> None:
        self._put(io.BytesIO(json.dumps(dict(values)).encode()), self.path_there(path), "write the file of secrets")

    def write(self, path: Path, text: str) -> None:
        name = f"{path.parent.name}/{path.name}"
        target = f"{self.path_there(path.parent.parent)}/{name}"
        line = 'mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"'
        self._run_checked(["bash", "-c", line, "-", target, text], f"write {name}")

    def remove(self, path: Path) -> None:
        self.run(["rm", "-f", "--", self.path_there(path)])

    def remove_run(self, run_id: str, *, dry_run: bool) -> int | None:
        line = ["bash", "-c", REMOVE_RUN, self._workdir, run_id, "" if dry_run else "remove"]
        done = self.run(line, timeout=REMOVAL_SECONDS)
        lines = done.stdout.splitlines()
        if done.code != 0 or not lines or not re.fullmatch("[0-9]{1,18}", lines[-1]):
            raise TargetError(
                f"slurm.login: {self.login}: cannot remove {run_id}: {' '.join(done.last_lines)}", code="ZL-SLURM-05"
            )
        return int(lines[-1])

    # Files from the cluster

    def fetch(self, run: RunDir, names: Sequence[str] = MIRRORED) -> list[str] | None:
        remote = f"{self._workdir}/.outgoing-{uuid.uuid4().hex[:8]}.tar.gz"
        tops = [name for name in names if name != CHECKPOINTS]
        checkpoints = "yes" if CHECKPOINTS in names else ""
        packed = self._run_line(
            shlex.join(["bash", "-c", PACK_RESULTS, self.path_there(run.path), remote, checkpoints, *tops]),
            "pack the run's files",
        )
        if not packed.strip().endswith(PACKED):
            return []
        with tempfile.TemporaryFile() as archive:
            with self._use_connection("fetch the run's files") as connection:
                # A look at a run, which may have a screen to itself, fetches no checkpoints.
                progress = ByteProgress(f"{self.login}: copying results") if checkpoints else None
                moved = progress.moved if progress else lambda size: None
                connection.get(remote, archive, shutil.disk_usage(run.path).free, moved)
            self._try_line(f"rm -f {shlex.quote(remote)}", "remove the fetched archive")
            archive.seek(0)
            try:
                fetched = unpack_foreign(archive, run.path)
            except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
                raise TargetError(
                    f"slurm.login: {self.login}: cannot unpack the run's files here: {error}", code="ZL-SLURM-05"
                ) from error
        if run_files.NODES in names:  # a new start there moves the old records away
            for record in set(run.nodes_dir.glob("node-*.json")) - {run.path / name for name in fetched}:
                record.unlink(missing_ok=True)
        return fetched


def _pack(archive: IO[bytes], names: Mapping[str, Path], *, skip: bool = False, dereference: bool = False) -> None:
    """Write files and directories into a tar, {name in it: path here}; `skip`: without what `sendable` leaves out.

    GNU's format: from a PAX archive, tar converts names to the locale of the login host, where no command finds them.
    """
    form = tarfile.GNU_FORMAT
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=3, dereference=dereference, format=form) as tar:
        for name, path in names.items():
            tar.add(path, arcname=name, filter=sendable if skip else None)


def sendable(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what a run directory holds under a name of NOT_SENT. Deeper down such a name means something else."""
    _, *below = PurePosixPath(info.name).parts
    return None if below and below[0] in NOT_SENT else info


def _quote_path(path: str) -> str:
    """Quote a path for a shell, but leave a leading `~/` for the shell to expand."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)

"""Copy files between run directories on hosts and this machine: single ones, and the results of a run."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from launcher.backends.ssh.watch import HostWatch
from launcher.errors import HostsError, TargetError
from launcher.machine.byte_progress import ByteProgress
from launcher.machine.storage import storage_error
from launcher.node import run_files
from launcher.node.farend.common import ANSWER
from launcher.remote.session import AnswerRefused, HostError, Session
from launcher.rundir.directory import RunDir
from launcher.rundir.foreign_files import is_checkpoint, is_result, stays_below

BLOCK = 4 << 20
RESULTS = (run_files.RESULT, run_files.METRICS, run_files.PREDICTIONS, run_files.ADAPTER, run_files.ERRORS)
"""Files and directories that node 0 writes."""


def _nothing(size: int) -> None:
    """Count no bytes."""


def download(
    session: Session, run_dir: str, name: str, size: int, target: Path, moved: Callable[[int], None] = _nothing
) -> None:
    """Copy one file of a host's run directory to `target`, whole or not at all. Raises TargetError.

    `moved` gets the size of each block.
    """
    temporary = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            while file.tell() < size:
                data = session.call("get", run_dir=run_dir, name=name, offset=file.tell())["payload"]
                file.write(data)
                moved(len(data))
                if len(data) < ANSWER:  # a whole block, or the file's end
                    break
        temporary.replace(target)
    except OSError as error:
        told = storage_error(error)
        raise TargetError(str(told or error), hint=told.hint if told else None, code="ZL-FILE-03") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def upload(session: Session, run_dir: str, name: str, source: Path, moved: Callable[[int], None] = _nothing) -> None:
    """Copy a file of this machine into a host's run directory. Raises TargetError.

    `moved` gets the size of each block.
    """
    size, offset, last = source.stat().st_size, 0, False
    with source.open("rb") as file:
        while not last:
            block = file.read(BLOCK)
            last = offset + len(block) >= size or not block
            session.call("put", block, run_dir=run_dir, name=name, offset=offset, last=last, timeout=600)
            offset += len(block)
            moved(len(block))


def files_below(session: Session, run_dir: str, tops: Sequence[str], wanted: Callable[[str], bool]) -> dict[str, int]:
    """Return {name: size} of the files below `tops` of a host's run directory whose names are `wanted`.

    Raises HostError for a name that is not below `tops`.
    """
    found: dict[str, int] = {}
    for name, size in session.call("tree", run_dir=run_dir, tops=list(tops))["files"]:
        if not stays_below(name, tops):
            raise AnswerRefused(f"{session.name} names a file that is none of the run's results: {name!r}")
        if wanted(name):
            found[name] = size
    return found


def require_room(session: Session, run: RunDir, sizes: Iterable[int]) -> None:
    """Raise HostError if files of these sizes would fill the disk here."""
    total, free = sum(sizes), shutil.disk_usage(run.path).free
    if total > free:
        raise HostError(f"the files on {session.name} have {total} bytes, and {free} are free at {run.path}")


def copy_results(
    watch: HostWatch, *, checkpoints: bool = False, seconds: float = float("inf"), shown: bool = False
) -> list[str] | None:
    """Copy all logs, and the results from node 0; return the results' names. None: node 0 is out of reach.

    `seconds`: for the logs of one host. `shown`: a copy that takes long prints how far it is. Raises HostsError,
    CopyBusy while another command copies, and TargetError for a disk that is full here.
    """
    watch.poll(logs=True, seconds=seconds, must_copy=True)
    session = watch.fleet.sessions[0]
    if not session.is_open:
        return None
    try:
        return _copy_from(session, watch, checkpoints=checkpoints, shown=shown)
    except HostError as error:
        raise HostsError("cannot copy the results of the run", {session.name: str(error)}) from error


def _copy_from(session: Session, watch: HostWatch, *, checkpoints: bool, shown: bool) -> list[str]:
    """Copy the results of a run from its first host; return their names. Raises HostError."""
    run, run_dir = watch.run, watch.places[0].run_dir
    tops = [*RESULTS, *([run_files.CHECKPOINTS] if checkpoints else [])]
    found = files_below(session, run_dir, tops, lambda name: is_result(name) or is_checkpoint(name))

    def is_here(name: str, size: int) -> bool:  # a checkpoint's files never change
        target = run.path / name
        return is_checkpoint(name) and target.exists() and target.stat().st_size == size

    files = {name: size for name, size in found.items() if not is_here(name, size)}
    require_room(session, run, files.values())
    copied = []
    moved = ByteProgress(f"copying results from {session.name}", sum(files.values())).moved if shown else _nothing
    # The file that marks a checkpoint as complete comes last, so an interrupted copy does not count as one.
    for name, size in sorted(files.items(), key=lambda file: file[0].endswith(f"/{run_files.COMPLETE}")):
        download(session, run_dir, name, size, run.path / name, moved)
        if name != run_files.METRICS:
            copied.append(name)
    return copied

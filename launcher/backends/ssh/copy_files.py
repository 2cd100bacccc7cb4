"""Copy files between run directories on hosts and this machine: single ones, and the results of a run."""

from __future__ import annotations

import contextlib
from pathlib import Path

from launcher.backends.ssh.watch import HostWatch
from launcher.errors import TargetError
from launcher.machine.storage import storage_error
from launcher.node import run_files
from launcher.remote.session import Session

BLOCK = 4 << 20
RESULTS = (run_files.RESULT, run_files.METRICS, run_files.PREDICTIONS, run_files.ADAPTER, run_files.ERRORS)
"""Files and directories that node 0 writes."""


def download(session: Session, run_dir: str, name: str, size: int, target: Path) -> None:
    """Copy one file of a host's run directory to `target`, whole or not at all. Raises TargetError."""
    temporary = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            while file.tell() < size:
                data = session.call("get", run_dir=run_dir, name=name, offset=file.tell())["payload"]
                if not data:
                    break
                file.write(data)
        temporary.replace(target)
    except OSError as error:
        told = storage_error(error)
        raise TargetError(str(told or error), hint=told.hint if told else None) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def upload(session: Session, run_dir: str, name: str, source: Path) -> None:
    """Copy a file of this machine into a host's run directory. Raises TargetError."""
    size, offset, last = source.stat().st_size, 0, False
    with source.open("rb") as file:
        while not last:
            block = file.read(BLOCK)
            last = offset + len(block) >= size or not block
            session.call("put", block, run_dir=run_dir, name=name, offset=offset, last=last, timeout=600)
            offset += len(block)


def copy_results(watch: HostWatch, *, checkpoints: bool = False) -> list[str] | None:
    """Copy all logs, and the results from node 0; return the results' names. None: node 0 is out of reach."""
    watch.poll(logs=True)
    run, session, run_dir = watch.run, watch.fleet.sessions[0], watch.places[0].run_dir
    if not session.is_open:
        return None
    tops = [*RESULTS, *([run_files.CHECKPOINTS] if checkpoints else [])]
    files: list[tuple[str, int]] = session.call("tree", run_dir=run_dir, tops=tops)["files"]
    copied = []
    # The file that marks a checkpoint as complete comes last, so an interrupted copy does not count as one.
    for name, size in sorted(files, key=lambda file: file[0].endswith(f"/{run_files.COMPLETE}")):
        target = run.path / name
        if name.startswith(f"{run_files.CHECKPOINTS}/") and target.exists() and target.stat().st_size == size:
            continue  # a checkpoint's files never change
        download(session, run_dir, name, size, target)
        if name != run_files.METRICS:
            copied.append(name)
    return copied

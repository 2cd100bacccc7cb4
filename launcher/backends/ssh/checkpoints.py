"""A resumed run whose first host is another one: its newest checkpoint is brought there, from whoever has it.

Rank 0 writes checkpoints, so they lie where the first host was; another host of the run has them if it was the first
one before or shares the directory, and this machine if they were pulled.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import TargetError
from launcher.node import run_files
from launcher.remote.fleet import Fleet, Json, Session
from launcher.rundir.directory import RunDir

COMPLETE = run_files.COMPLETE
"""The file that makes a checkpoint count (train/training/checkpoint.py); it goes last."""
METRICS = run_files.METRICS
BLOCK = 4 << 20


def newest(names: Sequence[str]) -> int:
    """The last step with a complete checkpoint among the files of a run directory; 0: there is none."""
    found = (re.fullmatch(rf"checkpoints/step-(\d+)/{COMPLETE}", name) for name in names)
    return max((int(match[1]) for match in found if match), default=0)


def bring_checkpoint(
    run: RunDir, fleet: Fleet, run_dirs: Sequence[str], former: Sequence[tuple[str, str]]
) -> int | None:
    """Give the first host the newest complete checkpoint of all; its step, None if the first host had it already.

    `former`: (host, run directory) of the submission before; hosts that are not of this one any more are asked, too,
    and one that cannot be reached is told of: newer checkpoints may lie there alone. Raises TargetError.
    """
    options, python = fleet.sessions[0].options, fleet.sessions[0].python
    sessions = {session.name: session for session in fleet.sessions}
    places = list(zip(sessions, run_dirs, strict=True))
    gone = [place for place in former if place not in places]  # another host, or another directory of the same
    others = Fleet([name for name, _ in gone if name not in sessions], options, python)
    try:
        others.each(lambda _, session: session.open())
        sessions.update((session.name, session) for session in others.sessions)
        if absent := [session.name for session in others.sessions if not session.is_open]:
            text = f"{', '.join(absent)} cannot be reached: checkpoints that lie there alone are not gone on from"
            run.event("note", text=text)
        known = [(sessions[name], run_dir) for name, run_dir in (*places, *gone)]
        return _bring(run, [(session, run_dir) for session, run_dir in known if session.is_open])
    finally:
        others.close()


def _bring(run: RunDir, known: Sequence[tuple[Session, str]]) -> int | None:
    files = [_files(session, run_dir) for session, run_dir in known]
    here = {path.relative_to(run.path).as_posix(): path for path in run.checkpoints.rglob("*") if path.is_file()}
    steps = [newest(list(has)) for has in files]
    step = max([newest(list(here)), *steps])
    if step <= steps[0]:
        return None
    if newest(list(here)) < step:
        session, run_dir = known[steps.index(step)]
        for name in _of_step(files[steps.index(step)], step):
            fetch(session, run_dir, name, files[steps.index(step)][name], run.path / name)
            here[name] = run.path / name
        if METRICS in files[steps.index(step)]:
            fetch(session, run_dir, METRICS, files[steps.index(step)][METRICS], run.metrics)
    if run.metrics.exists():  # what the steps before were like; the training forgets those after the checkpoint
        _push(known[0][0], known[0][1], METRICS, run.metrics)
    for name in _of_step(here, step):
        _push(known[0][0], known[0][1], name, here[name])
    return step


def _files(session: Session, run_dir: str) -> dict[str, int]:
    answer: Json = session.call("tree", run_dir=run_dir, tops=[run_files.CHECKPOINTS, METRICS])
    return dict(answer["files"])


def _of_step(names: dict[str, int] | dict[str, Path], step: int) -> list[str]:
    inside = [name for name in names if name.startswith(f"checkpoints/step-{step}/")]
    return sorted(inside, key=lambda name: name.endswith(f"/{COMPLETE}"))


def fetch(session: Session, run_dir: str, name: str, size: int, target: Path) -> None:
    """Copy one file of a host's run directory. Raises TargetError."""
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
        raise TargetError(f"cannot write {target} here: {error.strerror}", hint="free some space first") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _push(session: Session, run_dir: str, name: str, source: Path) -> None:
    size, offset = source.stat().st_size, 0
    with source.open("rb") as file:
        while True:
            block = file.read(BLOCK)
            last = offset + len(block) >= size or not block
            session.call("put", block, run_dir=run_dir, name=name, offset=offset, last=last, timeout=600)
            offset += len(block)
            if last:
                return

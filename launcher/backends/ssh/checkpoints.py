"""Resume on other hosts: copy the newest undamaged checkpoint to the new first host, from whichever machine has it.

The checkpoint that measured best goes with it.

Rank 0 writes checkpoints, so they lie where the first host was. Another host of the run has some if it was the first
one earlier or shares the directory. This machine has those that were pulled.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.backends.ssh.copy_files import download, files_below, require_room, upload
from launcher.backends.ssh.watch import HostWatch, NodePlace
from launcher.errors import TargetError
from launcher.machine.byte_progress import ByteProgress
from launcher.node import run_files
from launcher.remote.fleet import Fleet
from launcher.remote.session import Session
from launcher.rundir.directory import RunDir
from launcher.rundir.foreign_files import is_checkpoint
from train.rundir.checkpoints import damage, recorded, set_aside


@dataclass(frozen=True)
class Holder:
    """A host's run directory and the files of checkpoints and metrics in it, {name: size}."""

    session: Session
    run_dir: str
    files: dict[str, int]


def complete_steps(names: Iterable[str]) -> list[int]:
    """Steps with a complete checkpoint among the files of a run directory, newest first. Pure."""
    complete = re.compile(rf"{run_files.CHECKPOINTS}/step-(\d+)/{run_files.COMPLETE}")
    return sorted({int(match[1]) for match in map(complete.fullmatch, names) if match}, reverse=True)


def copy_newest_checkpoint(watch: HostWatch, former: Sequence[NodePlace]) -> int | None:
    """Give the first host the newest complete checkpoint of all; return its step, or None if it had that already.

    `former`: the places of the start before. Ask hosts that the run has left, too. If one is out of reach, say so:
    newer checkpoints may lie there alone. Raises TargetError.
    """
    first = watch.fleet.sessions[0]
    sessions = {session.name: session for session in watch.fleet.sessions}
    places = [(place.host, place.run_dir) for place in watch.places]
    left = [(place.host, place.run_dir) for place in former if (place.host, place.run_dir) not in places]
    others = Fleet([host for host, _ in left if host not in sessions], first.options, first.python)
    try:
        others.for_each_host(lambda _, session: session.open())
        sessions.update((session.name, session) for session in others.sessions)
        if absent := [session.name for session in others.sessions if not session.is_open]:
            text = f"cannot reach {', '.join(absent)}: checkpoints that lie only there are not used"
            watch.run.event("note", text=text)
        holders = [_holder(sessions[host], run_dir) for host, run_dir in places]
        for host, run_dir in left:
            try:
                holders += [_holder(sessions[host], run_dir)] if sessions[host].is_open else []
            except TargetError as error:
                watch.run.event("note", text=f"checkpoints on {host} are not used: {error}")
        return _copy_newest(watch.run, holders)
    finally:
        others.close()


def _holder(session: Session, run_dir: str) -> Holder:
    def wanted(name: str) -> bool:
        return name == run_files.METRICS or is_checkpoint(name)

    tops = (run_files.CHECKPOINTS, run_files.METRICS)
    return Holder(session, run_dir, files_below(session, run_dir, tops, wanted))


def _copy_newest(run: RunDir, holders: Sequence[Holder]) -> int | None:
    """Copy the newest undamaged checkpoint here and then to the first holder, unless that one has it."""
    first = holders[0]
    newest_there = max(complete_steps(first.files), default=0)
    if newest_there and run_files.METRICS not in first.files and run.metrics.exists():
        # It kept copies of checkpoints for a first host that is gone. The curve up to here is on this machine.
        upload(first.session, first.run_dir, run_files.METRICS, run.metrics)
    for step in complete_steps([*_names_here(run), *(name for holder in holders for name in holder.files)]):
        if step <= newest_there:
            break
        if _have_here(run, step, holders):
            if run.metrics.exists():  # the curve up to here; the training drops what lies after the checkpoint
                upload(first.session, first.run_dir, run_files.METRICS, run.metrics)
            _send(run, step, first)
            best = _best_of(run, step)
            if best is not None and best not in (step, *complete_steps(first.files)) and _have_here(run, best, holders):
                _send(run, best, first)
            return step
    return None


def _send(run: RunDir, step: int, first: Holder) -> None:
    names = _files_of_step(_names_here(run), step)
    size = sum((run.path / name).stat().st_size for name in names)
    moved = ByteProgress(f"sending the checkpoint of step {step} to {first.session.name}", size).moved
    for name in names:
        upload(first.session, first.run_dir, name, run.path / name, moved)


def _best_of(run: RunDir, step: int) -> int | None:
    """The step that measured best, as a checkpoint here has it: the adapter is to be of that one in the end."""
    progress = (recorded(run.checkpoints / f"step-{step}") or {}).get("progress")
    best = progress.get("best") if isinstance(progress, dict) else None
    found = best.get("step") if isinstance(best, dict) else None
    return found if isinstance(found, int) else None


def _have_here(run: RunDir, step: int, holders: Sequence[Holder]) -> bool:
    """Whether an undamaged checkpoint of the step lies here, copied from a holder where needed."""
    place = run.checkpoints / f"step-{step}"
    if step in run.checkpoint_steps():
        if (reason := damage(place)) is None:
            return True
        set_aside(place)
        _report(run, place, "this machine", reason)
    for holder in holders:
        if step not in complete_steps(holder.files):
            continue
        metrics = [run_files.METRICS] if run_files.METRICS in holder.files else []
        names = [*_files_of_step(holder.files, step), *metrics]
        sizes = {name: holder.files[name] for name in names}
        require_room(holder.session, run, sizes.values())
        what = f"copying the checkpoint of step {step} from {holder.session.name}"
        moved = ByteProgress(what, sum(sizes.values())).moved
        for name, size in sizes.items():
            download(holder.session, holder.run_dir, name, size, run.path / name, moved)
        if (reason := damage(place)) is None:
            return True
        shutil.rmtree(place, ignore_errors=True)  # the host keeps its own
        _report(run, place, holder.session.name, reason)
    return False


def _report(run: RunDir, place: Path, where: str, reason: str) -> None:
    run.event("note", text=f"the checkpoint {place.name} of {where} is damaged and not used: {reason}")


def _names_here(run: RunDir) -> list[str]:
    return [path.relative_to(run.path).as_posix() for path in run.checkpoints.rglob("*") if path.is_file()]


def _files_of_step(names: Iterable[str], step: int) -> list[str]:
    """Files of one checkpoint, the one that marks it as complete last."""
    inside = [name for name in names if name.startswith(f"{run_files.CHECKPOINTS}/step-{step}/")]
    return sorted(inside, key=lambda name: name.endswith(f"/{run_files.COMPLETE}"))

"""Resume on other hosts: copy the newest checkpoint to the new first host, from whichever machine has it.

Rank 0 writes checkpoints, so they lie where the first host was. Another host of the run has some if it was the first
one earlier or shares the directory. This machine has those that were pulled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.backends.ssh.copy_files import download, upload
from launcher.backends.ssh.watch import HostWatch, NodePlace
from launcher.node import run_files
from launcher.remote.fleet import Fleet
from launcher.remote.session import Session
from launcher.rundir.directory import RunDir


@dataclass(frozen=True)
class Holder:
    """A host's run directory and the files of checkpoints and metrics in it, {name: size}."""

    session: Session
    run_dir: str
    files: dict[str, int]

    @property
    def step(self) -> int:
        return newest_step(self.files)


def newest_step(names: Iterable[str]) -> int:
    """Return the last step with a complete checkpoint among the files of a run directory; 0: there is none. Pure."""
    complete = re.compile(rf"{run_files.CHECKPOINTS}/step-(\d+)/{run_files.COMPLETE}")
    return max((int(match[1]) for match in map(complete.fullmatch, names) if match), default=0)


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
        holders = [_holder(sessions[host], run_dir) for host, run_dir in (*places, *left) if sessions[host].is_open]
        return _copy_newest(watch.run, holders)
    finally:
        others.close()


def _holder(session: Session, run_dir: str) -> Holder:
    answer = session.call("tree", run_dir=run_dir, tops=[run_files.CHECKPOINTS, run_files.METRICS])
    return Holder(session, run_dir, dict(answer["files"]))


def _copy_newest(run: RunDir, holders: Sequence[Holder]) -> int | None:
    """Copy the newest checkpoint here and then to the first holder."""
    first, best = holders[0], max(holders, key=lambda holder: holder.step)
    here = {path.relative_to(run.path).as_posix(): path for path in run.checkpoints.rglob("*") if path.is_file()}
    step = max(newest_step(here), best.step)
    if step <= first.step:
        return None
    if newest_step(here) < step:
        metrics = [run_files.METRICS] if run_files.METRICS in best.files else []
        for name in [*_files_of_step(best.files, step), *metrics]:
            download(best.session, best.run_dir, name, best.files[name], run.path / name)
            here[name] = run.path / name
    if run.metrics.exists():  # the curve up to here; the training drops what lies after the checkpoint
        upload(first.session, first.run_dir, run_files.METRICS, run.metrics)
    for name in _files_of_step(here, step):
        upload(first.session, first.run_dir, name, here[name])
    return step


def _files_of_step(names: dict[str, int] | dict[str, Path], step: int) -> list[str]:
    """Files of one checkpoint, the one that marks it as complete last."""
    inside = [name for name in names if name.startswith(f"{run_files.CHECKPOINTS}/step-{step}/")]
    return sorted(inside, key=lambda name: name.endswith(f"/{run_files.COMPLETE}"))

"""What takes space and is of no more use: dry runs, interrupted removals, old checkpoints, caches."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from launcher.backends import current_state
from launcher.errors import ZlaunchError
from launcher.lifecycle import removal, sweep
from launcher.machine.storage import written
from launcher.node import files, processes, run_files
from launcher.rundir import find, reading
from launcher.rundir.directory import RunDir
from train.rundir import checkpoints

ABANDONED = 24 * 3600.0
"""Seconds after which a directory without that event, such as an older version's, counts as a dry run."""
RECENT = 24 * 3600.0
"""Seconds for which an entry of a cache that was used is kept: a run on another machine may read it."""


@dataclass(frozen=True)
class Waste:
    """A directory that may be removed."""

    kind: str
    path: Path
    bytes: int
    run: RunDir | None = None
    """Of a dry run: to be released once nobody can find it any more."""


@dataclass(frozen=True)
class Kept:
    """What stays, and why."""

    name: str
    reason: str


Found = Iterator[Waste | Kept]


def dry_runs(stack: ExitStack) -> Found:
    """Dry runs and sweeps of them, claimed until the stack is closed, and resumes that were only rendered."""
    root, now = find.runs_root(), time.time()
    runs = {run.run_id: run for run in find.list_runs(root) if find.is_dry_run(run) and not run.path.is_symlink()}
    points: dict[str, str] = {}
    for owner in removal.sweeps():
        members = [point.run for point in owner.points]
        there = [run_id for run_id in members if (root / run_id).exists()]
        if there and all(run_id in runs and _is_rendered_only(runs[run_id], now) for run_id in there):
            path = sweep.sweeps_root() / owner.sweep_id
            yield Waste("dry run", path, files.disk_usage(path))
        else:
            points.update(dict.fromkeys(members, owner.sweep_id))
    for run_id, run in runs.items():
        try:
            if run_id in points:
                yield Kept(run_id, f"a point of {points[run_id]}")
            elif not _is_rendered_only(run, now):
                yield Kept(run_id, "it may be about to start, or was started by hand")
            else:
                removal.refuse_living_dry_run(run)
                run.claim("clean")
                stack.callback(run.release)
                yield Waste("dry run", run.path, files.disk_usage(run.path), run)
        except ZlaunchError as error:
            yield Kept(run_id, str(error))
    for path in _directories(root / "resume-dry-run"):
        yield Waste("dry run of a resume", path, files.disk_usage(path))


def _is_rendered_only(run: RunDir, now: float) -> bool:
    """Whether a dry run wrote the directory, and nobody has started it by hand since."""
    if any((run.path / name).exists() for name in (run_files.NODES, run_files.LOGS, run_files.SLURM_LOG)):
        return False
    if any(event.get("event") == find.RENDERED for event in run.read_events()):
        return True
    return now - (run.plan_json if run.plan_json.exists() else run.path).stat().st_mtime > ABANDONED


def interrupted_removals() -> Found:
    """Directories that an interrupted `rm` or `clean` has renamed."""
    root = find.runs_root()
    for folder in (root, sweep.sweeps_root(), root / "resume-dry-run"):
        for path in _directories(folder, hidden=True):
            if path.name.startswith(files.REMOVING):
                yield Waste("interrupted removal", path, files.disk_usage(path))


def old_checkpoints(keep_last: int, stack: ExitStack) -> Found:
    """Of every run that is over, claimed: all checkpoints here but the newest ones and the best one.

    The best one is that of eval.keep_best, else the nearest to the lowest held-out loss. Damaged ones, which were set
    aside, are kept.
    """
    for run in find.list_runs(find.runs_root()):
        if find.is_dry_run(run) or run.path.is_symlink() or run.checkpoints.is_symlink():
            continue
        places = [path for path in _directories(run.checkpoints, hidden=True) if _is_checkpoint(path)]
        complete = [path for path in places if path in checkpoints.complete(run.checkpoints)]
        if len(places) <= keep_last and len(places) == len(complete):
            continue
        try:
            run.claim("clean")
            stack.callback(run.release)
            state = current_state.observed(run)
            if not state.is_final or processes.find_run_processes(run.run_id):
                yield Kept(run.run_id, f"it is {state.value}")
                continue
            seen = reading.read(run, state)
        except ZlaunchError as error:
            yield Kept(run.run_id, str(error).splitlines()[0])
            continue
        complete = sorted(complete, key=_step)
        keep = set(complete[-keep_last:])
        if complete and (seen.best or seen.held_out):
            lowest = seen.best.step if seen.best else min(seen.held_out, key=lambda point: point.loss).step
            keep.add(min(complete, key=lambda path: abs(_step(path) - lowest)))
        for path in places:
            if path not in keep:
                yield Waste("checkpoint", path, files.disk_usage(path))


def _is_checkpoint(path: Path) -> bool:
    return checkpoints.STEP_NAME.fullmatch(path.name.removeprefix(files.REMOVING)) is not None


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def caches() -> Found:
    """Cached tokens that were not used for a day, and the bytecode of libraries; nothing while a run lives here.

    Converted checkpoints stay: adapters name them as their base.
    """
    cache = Path(os.environ.get("ZLAUNCH_CACHE") or Path.home() / ".cache" / "zlaunch")
    if next(processes.run_processes(), None):
        yield Kept(str(cache), "a run lives on this machine")
        return
    now = time.time()
    for path in _directories(cache / "tokens", hidden=True):
        used = path.stat().st_mtime
        if path.name != "digests" and (now - used > RECENT or path.name.startswith(files.REMOVING)):
            yield Waste("tokens", path, files.disk_usage(path))
        elif path.name != "digests":
            yield Kept(str(path), f"used {(now - used) / 3600:.0f} hours ago")
    for path in _directories(cache, hidden=True):
        if path.name.removeprefix(files.REMOVING) == "bytecode":
            yield Waste("bytecode", path, files.disk_usage(path))


def _directories(folder: Path, *, hidden: bool = False) -> list[Path]:
    """The directories in a folder, no links; none if the folder is a link itself."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink()]
    return [path for path in found if hidden or not path.name.startswith(".")]


def remove(waste: Waste) -> int:
    """Remove it and return the bytes that were freed. An interrupted call leaves what the next one finds."""
    if waste.path.is_symlink():
        return 0
    with written():
        begun = waste.path.name.startswith(files.REMOVING)
        aside = waste.path if begun else files.put_aside(waste.path)
        if waste.run is not None:
            waste.run.release()  # NFS keeps the files that are open
        files.remove_tree(aside)
    return waste.bytes

"""Remove runs that are over, here and on the machines that have files of them.

A run is claimed first, so that nobody resumes it meanwhile, and then looked for by living evidence, as a cancel does.
Removing is: note it in the record, remove the copies elsewhere, rename the directory to `.removing-ID`, remove that.
After an interruption the same command goes on: the noted run is not resumed, and the renamed directory is none.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from launcher.backends import backend_of_run, current_state
from launcher.backends.base import Copy, Removes
from launcher.backends.slurm import query
from launcher.backends.slurm.jobs import shell_of
from launcher.errors import RunNotFound, TargetError, UsageError
from launcher.lifecycle import sweep
from launcher.lifecycle.sweep import Sweep
from launcher.machine.storage import written
from launcher.node import files, processes
from launcher.rundir import find
from launcher.rundir.directory import RunDir, write_atomic
from launcher.rundir.state import RunState, derive_state

Elsewhere = Callable[[bool], list[Copy]]
"""Called with whether to name the copies only."""
HERE = "this machine"


@dataclass
class Removal:
    """A run or a sweep that may be removed, claimed until its removal."""

    name: str
    state: str
    path: Path
    copies: list[Copy] = field(default_factory=list)
    """Its files on other machines."""
    parts: list[Removal] = field(default_factory=list)
    """The points of a sweep."""
    freed: int = 0
    """Bytes on this machine, without the parts."""
    further: tuple[Path, ...] = ()
    """Files beside the directory that belong to it."""
    run: RunDir | None = None
    """None: a sweep, or what an interrupted removal has left."""
    elsewhere: Elsewhere | None = None
    """Names the copies on other machines, or removes them."""

    @property
    def places(self) -> list[Copy]:
        own = [Copy(HERE, str(self.path), self.freed), *self.copies]
        return own + [copy for part in self.parts for copy in part.places]


def find_removals(names: Sequence[str], stack: ExitStack, *, local: bool) -> list[Removal]:
    """What the names mean, each checked and claimed until the stack is closed. Raises ZlaunchError for the first that
    cannot be removed; then nothing is.

    `local`: only the files of this machine, and believe a record that says that its run is over.
    """
    found: dict[Path, Removal] = {}
    for name in names:
        removal = _removal_of(name, stack, found, local)
        found.setdefault(removal.path, removal)
    return list(found.values())


def _removal_of(name: str, stack: ExitStack, found: dict[Path, Removal], local: bool) -> Removal:
    try:
        meant = sweep.find_run_or_sweep(name)
    except RunNotFound:
        if half := half_removed(name):
            return half
        raise
    path = sweep.sweeps_root() / meant.sweep_id if isinstance(meant, Sweep) else meant.path
    if known := found.get(path):  # named twice
        return known
    if isinstance(meant, Sweep):
        return _sweep_removal(meant, stack, local)
    if owner := sweep_of(meant.run_id):
        raise UsageError(
            f"{meant.run_id} is a point of {owner}",
            hint=f"points are removed with their sweep: zlaunch rm {owner}",
            code="ZL-RUN-11",
        )
    return run_removal(meant, stack, local=local)


def half_removed(name: str) -> Removal | None:
    """What an interrupted removal has left of the run or sweep with this whole id."""
    for folder in (find.runs_root(), sweep.sweeps_root()):
        aside = folder / f"{files.REMOVING}{name}"
        if "/" not in name and aside.is_dir() and not aside.is_symlink():
            return Removal(name, "half removed", folder / name, freed=files.disk_usage(aside))
    return None


def _sweep_removal(points: Sweep, stack: ExitStack, local: bool) -> Removal:
    for in_turn in (True, False):
        stack.enter_context(sweep.claim(points, "rm", in_turn=in_turn))
    path = sweep.sweeps_root() / points.sweep_id
    _refuse_foreign(path, sweep.sweeps_root())
    runs = [run for run in map(sweep.run_of, points.points) if run.path.is_dir()]
    removal = Removal(points.sweep_id, f"{len(runs)} runs", path, freed=files.disk_usage(path))
    removal.parts = [run_removal(run, stack, local=local) for run in runs]
    removal.parts += [half for point in points.points if (half := half_removed(point.run))]
    started = [part.run for part in removal.parts if part.elsewhere is not None and part.run is not None]
    if started and points.backend == "slurm":
        shell = shell_of(started[0].read_plan().get("slurm") or {})

        def elsewhere(dry_run: bool) -> list[Copy]:
            freed = shell.remove_run(f"sweeps/{points.sweep_id}", dry_run=dry_run)
            return [] if freed is None else [Copy(shell.name.removeprefix("login:"), shell.path_there(path), freed)]

        removal.elsewhere, removal.copies = elsewhere, elsewhere(True)
    return removal


def run_removal(run: RunDir, stack: ExitStack, *, local: bool) -> Removal:
    """A run that is over, claimed. Raises ZlaunchError for one that lives, may live, or is not ours."""
    root = find.runs_root()
    _refuse_foreign(run.path, root)
    if not find.is_dry_run(run) and run.record.extra.get("sweep"):
        pass  # the claim on its sweep is one on its points
    else:
        run.claim("rm")
        stack.callback(run.release)
    removal = Removal(run.run_id, _state_of(run, local), run.path, run=run, freed=files.disk_usage(run.path))
    removal.further = tuple(
        path for path in (root / ".secrets" / f"{run.run_id}.json", root / "resume-dry-run" / run.run_id)
        if path.exists() and not path.parent.is_symlink()
    )  # fmt: skip
    removal.freed += sum(map(files.disk_usage, removal.further))
    if not find.is_dry_run(run) and not local:
        backend = backend_of_run(run)
        if isinstance(backend, Removes):
            removal.elsewhere = functools.partial(_remove_elsewhere, backend, run)
            removal.copies = removal.elsewhere(True)
    return removal


def _remove_elsewhere(backend: Removes, run: RunDir, dry_run: bool) -> list[Copy]:
    return backend.remove(run, dry_run=dry_run)


def _refuse_foreign(path: Path, root: Path) -> None:
    """Raise UsageError for what is not a directory of its own right below `root`."""
    if path.is_symlink():
        to = path.readlink()
        raise UsageError(
            f"{path} is a symbolic link to {to}", hint="remove it and what it leads to yourself", code="ZL-RUN-11"
        )
    if path.parent.resolve() != root.resolve():
        raise UsageError(
            f"{path} is not in the directory of runs, {root}",
            hint=f"with ZLAUNCH_RUNS={path.parent} it is, or remove the directory yourself",
            code="ZL-RUN-11",
        )


def _state_of(run: RunDir, local: bool) -> str:
    """The state of a run of which nothing lives. Raises UsageError, and TargetError if that cannot be known."""
    if pids := [pid for pid, _ in processes.find_run_processes(run.run_id)]:
        raise UsageError(
            f"{run.run_id} runs here: processes {', '.join(map(str, pids[:5]))}",
            hint=f"zlaunch cancel {run.run_id}",
            code="ZL-RUN-03",
        )
    if find.is_dry_run(run):
        refuse_living_dry_run(run)
        return "DRY RUN"
    if local and (recorded := current_state.recorded_state(run.record)).is_final:
        return recorded.value
    try:
        state = current_state.observed(run)
    except TargetError as error:
        error.hint = f"{error.hint + '; ' if error.hint else ''}zlaunch rm --local {run.run_id} asks no other machine"
        raise
    if not state.is_final:
        raise UsageError(
            f"{run.run_id} is {state.value}", hint=f"cancel it first: zlaunch cancel {run.run_id}", code="ZL-RUN-03"
        )
    return state.value


def refuse_living_dry_run(run: RunDir) -> None:
    """Raise UsageError for a dry run that somebody has started by hand, and TargetError where Slurm does not say so."""
    if run.nodes_dir.is_dir() and derive_state(run) is RunState.RUNNING:
        raise UsageError(f"{run.run_id} was started by hand and is running", code="ZL-RUN-03")
    plan = run.read_plan()
    section = plan.get("slurm")
    if plan.get("backend") != "slurm" or not isinstance(section, dict) or section.get("asked", {}).get("login"):
        return
    if shutil.which("squeue") and any(name == run.run_id for _, name in query.live_jobs(shell_of(section))):
        raise UsageError(f"{run.run_id} was submitted by hand, and its job is not over", code="ZL-RUN-03")


def sweep_of(run_id: str) -> str | None:
    """The sweep that has the run as a point."""
    for found in sweeps():
        if any(point.run == run_id for point in found.points):
            return found.sweep_id
    return None


def sweeps() -> Iterator[Sweep]:
    """The sweeps that can be read."""
    for file in sorted(sweep.sweeps_root().glob("[!.]*/sweep.json")):
        try:
            found = sweep.find_sweep(file.parent.name)
        except RunNotFound:
            continue
        if found is not None and found.sweep_id == file.parent.name:
            yield found


def remove(removal: Removal) -> list[Copy]:
    """Remove it; return what was freed where. Raises TargetError, StorageError; then the same call goes on later."""
    freed = [Copy(HERE, str(removal.path), removal.freed)]
    run = removal.run
    if run is not None and not find.is_dry_run(run):
        run.update_record(extra={**run.record.extra, find.REMOVAL: time.time()})
    if removal.path.parent == sweep.sweeps_root() and removal.path.is_dir():
        write_atomic(removal.path / find.REMOVAL, f"{time.time()}\n")
    if removal.elsewhere is not None:
        freed += removal.elsewhere(False)
    for part in removal.parts:
        freed += remove(part)
    with written():
        for path in removal.further:
            files.remove_tree(path)
        aside = files.put_aside(removal.path)
        if run is not None:
            run.release()  # NFS keeps the files that are open
        files.remove_tree(aside)
    return freed

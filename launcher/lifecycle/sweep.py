"""Sweeps: one run for each combination of values, compared by `zlaunch report`.

On Slurm the runs are one array job; on this machine and over SSH they follow one another. A sweep is a directory
`sweeps/<id>/` beside the run directories, with sweep.json (which runs, which values), on Slurm sweep.sbatch, elsewhere
the jobs of the points, by which those start that were kept from starting, and `cancelled`: the word of `zlaunch cancel`
to the launcher that works through the points.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from launcher.backends import current_state
from launcher.errors import RunNotFound, SpecError, UsageError, ZlaunchError
from launcher.job import yamlfile
from launcher.job.load import parse_set, read_job
from launcher.job.spec import Job, JobSpec
from launcher.lifecycle import submit
from launcher.rundir.directory import RunDir, write_atomic
from launcher.rundir.find import SAY_MORE, find_run, list_runs, new_run_id, runs_root
from launcher.rundir.state import RunState

Load = Callable[[dict[str, Any]], Job]
"""The command's job with some keys replaced."""
Revoked = Callable[[], bool]
"""Whether the sweep was cancelled meanwhile."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    run: str
    """Run id."""
    values: dict[str, Any]


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = 1
    sweep_id: str
    backend: str
    created: float
    points: tuple[Point, ...]


# ------------------------------------------------------------------------------------------------------------- pure


def parse(texts: Iterable[str]) -> dict[str, list[Any]]:
    """`lora.r=8,16` -> {"lora.r": [8, 16]}. Raises SpecError."""
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SpecError(f"--sweep {text!r}: expected key=value,value", hint="for example --sweep lora.r=8,16,32")
        if key in axes:
            raise SpecError(f"--sweep: {key} stands there twice")
        parsed = yamlfile.loads(f"[{values}]", where=f"--sweep {key}")  # a list's own commas stand in brackets
        if not parsed:
            raise SpecError(f"--sweep {key}: no values")
        axes[key] = parsed
    return axes


def combinations(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination, the last key changing fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def check_axes(axes: dict[str, list[Any]], overrides: Sequence[str], *, fixed: Sequence[str] = ()) -> None:
    """Refuse keys that --set gives too, and sections (`fixed`) that all points must share. Raises SpecError."""
    given = {parse_set(text)[0] for text in overrides}
    for key in axes:
        if key in given:
            raise SpecError(f"{key} is given by both --sweep and --set")
        if key == "name" or key.partition(".")[0] in fixed:
            raise SpecError(
                f"--sweep {key}: all points of a sweep share it",
                hint="one array job has one shape; for different shapes start several runs",
            )


def label(values: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


# ------------------------------------------------------------------------------------------------------------ files


def folder(root: Path | None = None) -> Path:
    return (root or runs_root()) / "sweeps"


def save(sweep: Sweep) -> Path:
    directory = folder() / sweep.sweep_id
    write_atomic(directory / "sweep.json", msgspec.json.format(msgspec.json.encode(sweep)).decode() + "\n")
    return directory


def find(text: str) -> Sweep | None:
    """The sweep of that id or beginning of one; None if there is none (`last` and no text at all mean runs). Raises
    RunNotFound if there are several."""
    if text in ("", "last"):
        return None
    names = [path.parent.name for path in folder().glob("*/sweep.json")]
    matches = [name for name in names if name == text] or [name for name in names if name.startswith(text)]
    if len(matches) > 1:
        among = ", ".join(sorted(matches)[:5])
        raise RunNotFound(f"{text!r} is the beginning of {len(matches)} sweeps: {among}", hint=SAY_MORE)
    if not matches:
        return None
    file = folder() / matches[0] / "sweep.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=Sweep)
    except (OSError, msgspec.MsgspecError) as error:
        raise RunNotFound(f"{file} cannot be read: {error}") from error


def named(text: str) -> Sweep | RunDir:
    """The sweep or the run meant by `text`. Raises RunNotFound, also for a beginning that a sweep and a run outside it
    share: a command that ends or starts runs must not guess."""
    found = find(text)
    if found is None:
        return find_run(text, runs_root())
    own = {point.run for point in found.points}
    others = [run.run_id for run in list_runs(runs_root()) if run.run_id.startswith(text)]
    if others := [run for run in others if run not in own]:
        among = ", ".join(others[:5])
        raise RunNotFound(f"{text!r} is the beginning of the sweep {found.sweep_id} and of {among}", hint=SAY_MORE)
    return found


def run_of(point: Point) -> RunDir:
    return RunDir(runs_root() / point.run)


def state_of(run: RunDir) -> RunState | None:
    """The run's state; None for a point that was never started."""
    return current_state.current(run) if run.run_json.exists() else None


def job_file(sweep: Sweep, run: RunDir) -> Path:
    """A point's job: the sweep keeps it until the point has a directory of its own."""
    return run.job_yaml if run.job_yaml.exists() else folder() / sweep.sweep_id / f"{run.run_id}.yaml"


def revoke(sweep: Sweep) -> None:
    """Have the launcher that works through the sweep, if there is one, start no further point."""
    write_atomic(folder() / sweep.sweep_id / "cancelled", json.dumps({"time": time.time()}) + "\n")


def revoked_since(sweep: Sweep) -> Revoked:
    """Tells of a `revoke` from now on: an earlier one was not meant for who goes on with a cancelled sweep."""
    mark = folder() / sweep.sweep_id / "cancelled"

    def content() -> bytes:
        try:
            return mark.read_bytes()
        except FileNotFoundError:
            return b""

    before = content()
    return lambda: content() != before


# ------------------------------------------------------------------------------------------------------------ start


def new_sweep(name: str, backend: str, made: Iterable[tuple[RunDir, dict[str, Any]]]) -> Sweep:
    points = tuple(Point(run=run.run_id, values=values) for run, values in made)
    return Sweep(sweep_id=new_run_id(f"{name}-sweep"), backend=backend, created=time.time(), points=points)


def points_of(
    texts: Sequence[str], load: Load, overrides: Sequence[str], *, fixed: Sequence[str] = ()
) -> list[tuple[Job, dict[str, Any]]]:
    """Each point's job and its values; every job is checked before any run starts. Raises SpecError."""
    axes = parse(texts)
    check_axes(axes, overrides, fixed=fixed)
    name = load({}).spec.name
    found = combinations(axes)
    width = len(str(len(found) - 1))
    return [(load({**values, "name": f"{name}-{index:0{width}}"}), values) for index, values in enumerate(found)]


def readers(jobs: Iterable[JobSpec]) -> list[JobSpec]:
    """One job for each way in which the points read records: looking at them takes a third of a second."""
    return list({(job.data, job.model): job for job in jobs}.values())


def refuse_detach(detach: bool) -> None:
    """Points that follow one another need someone to start them. Raises UsageError."""
    if detach:
        raise UsageError("--sweep and --detach do not go together here", hint="run it in tmux or under nohup")


def one_after_another(
    texts: Sequence[str],
    load: Load,
    overrides: Sequence[str],
    start: Callable[[Job, RunDir, Revoked], int],
    *,
    backend: str,
) -> int:
    """Run every point with `start`, which takes a run to its end; a point that fails does not end the others.

    Returns 0 if all succeeded, 130 at Ctrl-C and `cancel`, 1 if one failed, 2 if only what was asked for was wrong.
    """
    jobs = points_of(texts, load, overrides)
    made = [(job, RunDir(runs_root() / new_run_id(job.spec.name)), values) for job, values in jobs]
    sweep = new_sweep(load({}).spec.name, backend, [(run, values) for _, run, values in made])
    for job, run, _ in made:
        write_atomic(job_file(sweep, run), submit.job_text(job))
    save(sweep)
    return _in_turn(sweep, range(len(made)), lambda index, revoked: start(*made[index][:2], revoked))


def _in_turn(sweep: Sweep, todo: Sequence[int], start: Callable[[int, Revoked], int]) -> int:
    """Start points one after another, each when the one before has ended, until somebody cancels the sweep."""
    revoked = revoked_since(sweep)
    click.echo(f"sweep {sweep.sweep_id}: {len(todo)} points, one after another", err=True)
    codes = []
    for index in todo:
        if revoked():
            click.echo(f"{sweep.sweep_id} was cancelled: no further point is started", err=True)
            codes.append(130)
            break
        click.echo(f"point {index + 1} of {len(sweep.points)}: {label(sweep.points[index].values)}", err=True)
        try:
            codes.append(start(index, revoked))
        except ZlaunchError as error:
            click.echo(f"error: {error}" + (f"\n  -> {error.hint}" if error.hint else ""), err=True)
            codes.append(error.exit_code)
        if codes[-1] == 130:
            break
    click.echo(f"sweep {sweep.sweep_id}\n  zlaunch report {sweep.sweep_id}", err=True)
    if 130 in codes:
        click.echo(f"  zlaunch resume {sweep.sweep_id}", err=True)
    return next((code for code in (130, 1, 2) if code in codes), 0)


def unfinished(sweep: Sweep) -> list[int]:
    """The points that did not succeed. Raises UsageError if one still runs, none is left, or none was ever started."""
    made = [run_of(point) for point in sweep.points]
    if any(run.plan_json.exists() for run in made) and not any(run.run_json.exists() for run in made):
        raise UsageError(
            f"{sweep.sweep_id} was rendered (--dry-run) but not submitted",
            hint="the same command without --dry-run starts it",
        )
    states = {index: state_of(run) for index, run in enumerate(made)}
    running = [sweep.points[index].run for index, state in states.items() if state is not None and not state.is_final]
    if running:
        hint = f"wait, or end them: zlaunch cancel {sweep.sweep_id}"
        raise UsageError(f"still queued or running: {', '.join(running)}", hint=hint)
    todo = [index for index, state in states.items() if state is not RunState.SUCCEEDED]
    if not todo:
        raise UsageError(f"all {len(states)} points of {sweep.sweep_id} have succeeded")
    return todo


def resume_in_turn(sweep: Sweep, again: Callable[[Job, RunDir, Revoked], int]) -> int:
    """Start again what did not succeed, one after another: from its checkpoint, or for the first time."""

    def start(index: int, revoked: Revoked) -> int:
        run = run_of(sweep.points[index])
        return again(read_job(job_file(sweep, run)), run, revoked)

    return _in_turn(sweep, unfinished(sweep), start)

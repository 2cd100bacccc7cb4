"""Sweeps: one run per combination of values, compared by `zlaunch report`.

A sweep is a directory `sweeps/<id>/` beside the run directories. sweep.json has the runs and their values. On Slurm,
where the points are one array job, sweep.sbatch is its script. Elsewhere the points run one after another: <run>.yaml
is the job of a point, and `cancelled` tells their launcher to start no further point.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.backends import current_state
from launcher.errors import RunNotFound, SpecError, UsageError
from launcher.job import yamlfile
from launcher.job.load import parse_set, wants_text
from launcher.job.spec import Job, JobSpec
from launcher.rundir.claims import Claim
from launcher.rundir.directory import RunDir, write_atomic
from launcher.rundir.find import (
    AMBIGUOUS_HINT,
    REMOVAL,
    find_run,
    is_dry_run,
    list_runs,
    matching,
    new_run_id,
    path_of,
    runs_root,
)
from launcher.rundir.state import RunState

Load = Callable[[dict[str, Any]], Job]
"""Loads the job of the command with some keys replaced."""
IsCancelled = Callable[[], bool]
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
    array_size: int | None = None
    """Slurm: points per array job, where one array cannot hold them all; null: they are one array."""


# ----------------------------------------------------------------------------------------------------- points


def parse(texts: Iterable[str]) -> dict[str, list[Any]]:
    """`lora.r=8,16` -> {"lora.r": [8, 16]}. Raises SpecError."""
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SpecError(
                f"--sweep {text!r}: expected key=value,value",
                hint="for example --sweep lora.r=8,16,32",
                code="ZL-OPT-02",
            )
        if key in axes:
            raise SpecError(f"--sweep: {key} is given twice", code="ZL-OPT-02")
        # a value that is a list has its own brackets
        parsed = yamlfile.loads(f"[{values}]", where=f"--sweep {key}", key=key, is_text=wants_text)
        if not parsed:
            raise SpecError(f"--sweep {key}: no values", code="ZL-OPT-02")
        axes[key] = parsed
    return axes


def combinations(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of values; the last key changes fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def check_axes(axes: dict[str, list[Any]], overrides: Sequence[str], *, fixed: Sequence[str] = ()) -> None:
    """Raise SpecError for keys that --set gives too, and for sections (`fixed`) that all points must share."""
    overridden = {parse_set(text)[0] for text in overrides}
    for key in axes:
        if key in overridden:
            raise SpecError(f"{key} is given by both --sweep and --set", code="ZL-OPT-02")
        if key == "name" or key.partition(".")[0] in fixed:
            raise SpecError(
                f"--sweep {key}: all points of a sweep must share it",
                hint="all elements of an array job have one shape; for different shapes start several runs",
                code="ZL-OPT-02",
            )


def make_points(
    texts: Sequence[str], load: Load, overrides: Sequence[str], *, fixed: Sequence[str] = ()
) -> list[tuple[Job, dict[str, Any]]]:
    """The job and the values of each point. Every job is checked before any run starts. Raises SpecError."""
    axes = parse(texts)
    check_axes(axes, overrides, fixed=fixed)
    points = combinations(axes)
    name = load(points[0]).spec.name
    width = len(str(len(points) - 1))
    return [(load({**values, "name": f"{name}-{index:0{width}}"}), values) for index, values in enumerate(points)]


def name_of(points: Sequence[tuple[Job, dict[str, Any]]]) -> str:
    """The name of the job that the points were made from: theirs without the number."""
    return points[0][0].spec.name.rpartition("-")[0]


def distinct_data(jobs: Iterable[JobSpec]) -> list[JobSpec]:
    """Deduplicate points that read the same records, so each data set is checked once."""
    return list({msgspec.json.encode((job.data, job.model)): job for job in jobs}.values())


def new_sweep(
    name: str, backend: str, made: Iterable[tuple[RunDir, dict[str, Any]]], array_size: int | None = None
) -> Sweep:
    points = tuple(Point(run=run.run_id, values=values) for run, values in made)
    size = array_size if array_size and array_size < len(points) else None
    sweep_id = new_run_id(f"{name}-sweep")
    return Sweep(sweep_id=sweep_id, backend=backend, created=time.time(), points=points, array_size=size)


def label(values: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


# ------------------------------------------------------------------------------------------------------ files


def sweeps_root() -> Path:
    return runs_root() / "sweeps"


def save(sweep: Sweep) -> Path:
    directory = sweeps_root() / sweep.sweep_id
    write_atomic(directory / "sweep.json", msgspec.json.format(msgspec.json.encode(sweep)).decode() + "\n")
    return directory


def find_sweep(text: str) -> Sweep | None:
    """The sweep with this path, id, name or unambiguous prefix, or None; `last` means a run. Raises RunNotFound."""
    path = path_of(text)
    if text == "last" or (path is not None and path.parent != sweeps_root()):
        return None
    names = [file.parent.name for file in sweeps_root().glob("[!.]*/sweep.json")]
    matches = [path.name] if path is not None and path.name in names else matching(text, names)
    if len(matches) > 1:
        raise RunNotFound(
            f"{text!r} is the name or a prefix of {len(matches)} sweeps: {', '.join(sorted(matches)[:5])}",
            hint=AMBIGUOUS_HINT,
        )
    if not matches:
        return None
    file = sweeps_root() / matches[0] / "sweep.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=Sweep)
    except (OSError, msgspec.MsgspecError) as error:
        raise RunNotFound(f"cannot read {file}: {error}", code="ZL-RUN-02") from error


def find_run_or_sweep(text: str) -> Sweep | RunDir:
    """The sweep or the run meant by `text`.

    Raises RunNotFound, also for a prefix that a sweep shares with a run outside it: a command that cancels or starts
    runs must not guess.
    """
    sweep = find_sweep(text)
    if sweep is None:
        return find_run(text, runs_root())
    points = {point.run for point in sweep.points}
    begun = [run.run_id for run in list_runs(runs_root()) if not is_dry_run(run)]
    others = [run_id for run_id in matching(text, begun) if run_id not in points and text != sweep.sweep_id]
    if others:
        raise RunNotFound(
            f"{text!r} is a prefix of the sweep {sweep.sweep_id} and of {', '.join(others[:5])}", hint=AMBIGUOUS_HINT
        )
    return sweep


def run_of(point: Point) -> RunDir:
    return RunDir(runs_root() / point.run)


def state_of(run: RunDir) -> RunState | None:
    """The state of a point; None if it never started."""
    return current_state.current(run) if run.run_json.exists() else None


def job_file(sweep: Sweep, run: RunDir) -> Path:
    """The job file of a point: in the sweep until the point has its own run directory."""
    return run.job_yaml if run.job_yaml.exists() else sweeps_root() / sweep.sweep_id / f"{run.run_id}.yaml"


def unfinished(sweep: Sweep) -> list[int]:
    """The indices of the points that did not succeed.

    Raises UsageError if a point is still running, if all have succeeded, or if the sweep was never started or is half
    removed.
    """
    if (sweeps_root() / sweep.sweep_id / REMOVAL).exists():
        raise UsageError(
            f"{sweep.sweep_id} is half removed", hint=f"zlaunch rm {sweep.sweep_id} removes the rest", code="ZL-RUN-03"
        )
    runs = [run_of(point) for point in sweep.points]
    if any(run.plan_json.exists() for run in runs) and not any(run.run_json.exists() for run in runs):
        raise UsageError(
            f"{sweep.sweep_id} was rendered (--dry-run) but not submitted",
            hint="the same command without --dry-run starts it",
            code="ZL-RUN-03",
        )
    states = {index: state_of(run) for index, run in enumerate(runs)}
    active = [sweep.points[index].run for index, state in states.items() if state is not None and not state.is_final]
    if active:
        hint = f"wait, or cancel them: zlaunch cancel {sweep.sweep_id}"
        raise UsageError(f"still queued or running: {', '.join(active)}", hint=hint, code="ZL-RUN-03")
    todo = [index for index, state in states.items() if state is not RunState.SUCCEEDED]
    if not todo:
        raise UsageError(f"all {len(states)} points of {sweep.sweep_id} have succeeded", code="ZL-RUN-03")
    return todo


def claim(sweep: Sweep, doing: str, *, exclusive: bool = True, in_turn: bool = False) -> Claim:
    """Take the right to start the points of a sweep, or to end them. Raises Busy.

    `in_turn`: to be the launcher that works through them, which others may cancel.
    """
    return Claim(sweeps_root() / sweep.sweep_id, doing, exclusive=exclusive, lock="turn" if in_turn else "start")


def mark_cancelled(sweep: Sweep) -> None:
    """Tell the launcher that works through the sweep, if there is one, to start no further point."""
    write_atomic(_mark(sweep), json.dumps({"time": time.time()}) + "\n")


def watch_cancelled(sweep: Sweep) -> IsCancelled:
    """Return a function that reports whether `mark_cancelled` was called from now on.

    Earlier calls do not count, because a cancelled sweep may be resumed.
    """
    before = _mark_content(sweep)
    return lambda: _mark_content(sweep) != before


def _mark(sweep: Sweep) -> Path:
    return sweeps_root() / sweep.sweep_id / "cancelled"


def _mark_content(sweep: Sweep) -> bytes:
    try:
        return _mark(sweep).read_bytes()
    except FileNotFoundError:
        return b""

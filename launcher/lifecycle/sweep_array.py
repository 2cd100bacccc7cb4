"""A sweep as one Slurm array: submit, resume and wait for its points."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import click
import msgspec

from launcher.backends import backend_of
from launcher.backends.base import Arrays
from launcher.errors import RunFailed, ZlaunchError
from launcher.lifecycle import checks, submit
from launcher.lifecycle.sweep import (
    Load,
    Sweep,
    folder,
    label,
    new_sweep,
    points_of,
    readers,
    run_of,
    save,
    state_of,
    unfinished,
)
from launcher.plan.types import RunPlan
from launcher.render import sbatch
from launcher.rundir.directory import RunDir, write_atomic
from launcher.rundir.state import RunState


def on_slurm(
    texts: Sequence[str],
    load: Load,
    overrides: Sequence[str],
    *,
    show: bool,
    quiet: bool = False,
    follow: bool,
    as_json: bool,
) -> int:
    """All points as one array job; returns at once, or with `follow` when the last point has ended.

    `show`: only write the files, and print the batch script unless `quiet`.
    """
    jobs = points_of(texts, load, overrides, fixed=("slurm", "secrets", "device"))
    secrets = {} if show else checks.read_secrets(jobs[0][0].spec.secrets)
    for asked in readers(job.spec for job, _ in jobs):
        checks.check_records(asked)
    backend = backend_of("slurm")
    made = [(submit.prepare(job, backend.target(job.spec), records_checked=True), values) for job, values in jobs]
    sweep = new_sweep(load({}).spec.name, "slurm", [(run, values) for (run, _), values in made])
    directory = save(sweep)
    first = made[0][0][1]
    assert first.slurm is not None
    names = [point.run for point in sweep.points]
    text = sbatch.script(first.slurm, names, [f"../../{name}" for name in names], sweep.sweep_id)
    write_atomic(directory / "sweep.sbatch", text)
    if show:
        if not quiet:
            click.echo(text, nl=False)
        if as_json:
            click.echo(json.dumps({"sweep": sweep.sweep_id, "runs": names, "directory": str(directory)}))
            return 0
        click.echo(f"rendered {directory} and {len(made)} run directories; nothing was queued", err=True)
        return 0
    assert isinstance(backend, Arrays)
    try:
        job = backend.submit_array(directory / "sweep.sbatch", [point for point, _ in made], secrets)
    except ZlaunchError as error:
        for (run, plan), _ in made:
            submit.not_started(run, submit.write_record(run, plan, extra={"sweep": sweep.sweep_id}), error)
        raise
    for index, ((run, plan), _) in enumerate(made):
        record_point(sweep, run, plan, f"{job}_{index}")
    say(sweep, job, as_json)
    return wait_for(sweep) if follow else 0


def resume_on_slurm(sweep: Sweep, *, as_json: bool) -> int:
    """Start again what did not succeed, as one array job with only these points. Raises UsageError."""
    todo = unfinished(sweep)
    runs = [run_of(sweep.points[index]) for index in todo]
    again = [(run, msgspec.json.decode(run.plan_json.read_bytes(), type=RunPlan)) for run in runs]
    secrets = checks.read_secrets(again[0][1].launch.secrets)
    backend = backend_of("slurm")
    assert isinstance(backend, Arrays)
    job = backend.submit_array(folder() / sweep.sweep_id / "sweep.sbatch", again, secrets, indices=todo)
    for index, (run, plan) in zip(todo, again, strict=True):
        record_point(sweep, run, plan, f"{job}_{index}")
    say(sweep, job, as_json, points=todo)
    return 0


def record_point(sweep: Sweep, run: RunDir, plan: RunPlan, job: str) -> None:
    """Write the record of a point that was queued as an element of an array."""
    submit.write_record(run, plan, extra={"sweep": sweep.sweep_id})
    submit.record_start(run, plan, (job,))


def wait_for(sweep: Sweep, pause: float = 1.0) -> int:
    """Until every point has ended; 130 if some were cancelled. Raises RunFailed naming those that did not succeed.

    A Ctrl-C ends the waiting only: each point takes as long to end as a run of its own.
    """
    try:
        while True:
            states = {point.run: state_of(run_of(point)) for point in sweep.points}
            if all(state is not None and state.is_final for state in states.values()):
                break
            time.sleep(pause)
    except KeyboardInterrupt:
        click.echo(f"{sweep.sweep_id} goes on; zlaunch cancel {sweep.sweep_id} ends it", err=True)
        raise
    bad = [f"{run} {state.value if state else ''}" for run, state in states.items() if state is not RunState.SUCCEEDED]
    if not bad:
        return 0
    told = RunFailed(
        f"{len(bad)} of {len(states)} points did not succeed: {', '.join(bad)}",
        hint=f"zlaunch report {sweep.sweep_id}; zlaunch resume {sweep.sweep_id} starts only these again",
    )
    if RunState.CANCELLED not in states.values():
        raise told
    click.echo(f"{told}\n  -> {told.hint}", err=True)
    return 130


def say(sweep: Sweep, job: str, as_json: bool, points: Sequence[int] | None = None) -> None:
    chosen = range(len(sweep.points)) if points is None else points
    if as_json:
        named = [sweep.points[index].run for index in chosen]
        place = str(folder() / sweep.sweep_id)
        click.echo(json.dumps({"sweep": sweep.sweep_id, "job": job, "runs": named, "directory": place}))
        return
    click.echo(f"job {job}: {sweep.sweep_id}")
    for index in chosen:
        click.echo(f"  {job}_{index}  {sweep.points[index].run}  {label(sweep.points[index].values)}")
    click.echo(f"  zlaunch report {sweep.sweep_id}")

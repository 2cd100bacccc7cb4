"""A sweep on Slurm: its points are one array job."""

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
    distinct_data,
    label,
    make_points,
    name_of,
    new_sweep,
    run_of,
    save,
    state_of,
    sweeps_root,
    unfinished,
)
from launcher.machine import facts
from launcher.plan.types import RunPlan
from launcher.render import sbatch
from launcher.rundir.directory import RunDir, write_atomic
from launcher.rundir.state import RunState

SCRIPT = "sweep.sbatch"


def submit_sweep(
    texts: Sequence[str],
    load: Load,
    overrides: Sequence[str],
    *,
    dry_run: bool,
    quiet: bool = False,
    follow: bool,
    as_json: bool,
) -> int:
    """Submit all points as one array job. Returns at once, or with `follow` when the last point has ended.

    `dry_run`: only write the files, and print the batch script unless `quiet`.
    """
    jobs = make_points(texts, load, overrides, fixed=("slurm", "secrets", "device"))
    secrets = {} if dry_run else checks.read_secrets(jobs[0][0].spec.secrets)
    for spec in distinct_data(job.spec for job, _ in jobs):
        checks.check_records(spec, facts.model_directory(spec.model.path, spec.env))
    backend = backend_of("slurm")
    made = [(submit.prepare(job, backend.target(job.spec), records_checked=True), values) for job, values in jobs]
    sweep = new_sweep(name_of(jobs), "slurm", [(run, values) for (run, _), values in made])
    directory = save(sweep)
    first = made[0][0][1]
    assert first.slurm is not None
    runs = [point.run for point in sweep.points]
    text = sbatch.script(first.slurm, runs, [f"../../{run}" for run in runs], sweep.sweep_id)
    write_atomic(directory / SCRIPT, text)
    if dry_run:
        if not quiet:
            click.echo(text, nl=False)
        if as_json:
            click.echo(json.dumps({"sweep": sweep.sweep_id, "runs": runs, "directory": str(directory)}))
        else:
            click.echo(f"rendered {directory} and {len(made)} run directories; nothing was submitted", err=True)
        return 0
    assert isinstance(backend, Arrays)
    try:
        job = backend.submit_array(directory / SCRIPT, [point for point, _ in made], secrets)
    except ZlaunchError as error:
        for (run, plan), _ in made:
            submit.record_failed_start(run, submit.write_record(run, plan, extra={"sweep": sweep.sweep_id}), error)
        raise
    for index, ((run, plan), _) in enumerate(made):
        _record_point(sweep, run, plan, f"{job}_{index}")
    _print_submitted(sweep, job, range(len(made)), as_json)
    return wait(sweep) if follow else 0


def resume_sweep(sweep: Sweep, *, as_json: bool) -> int:
    """Submit the points that did not succeed as one array job. Raises UsageError."""
    todo = unfinished(sweep)
    runs = [run_of(sweep.points[index]) for index in todo]
    points = [(run, msgspec.json.decode(run.plan_json.read_bytes(), type=RunPlan)) for run in runs]
    secrets = checks.read_secrets(points[0][1].launch.secrets)
    backend = backend_of("slurm")
    assert isinstance(backend, Arrays)
    job = backend.submit_array(sweeps_root() / sweep.sweep_id / SCRIPT, points, secrets, indices=todo)
    for index, (run, plan) in zip(todo, points, strict=True):
        _record_point(sweep, run, plan, f"{job}_{index}")
    _print_submitted(sweep, job, todo, as_json)
    return 0


def _record_point(sweep: Sweep, run: RunDir, plan: RunPlan, job: str) -> None:
    submit.write_record(run, plan, extra={"sweep": sweep.sweep_id})
    submit.record_start(run, plan, (job,))


def wait(sweep: Sweep, pause: float = 1.0) -> int:
    """Wait until every point has ended. Returns 130 if some were cancelled. Raises RunFailed if some did not succeed.

    A Ctrl-C ends only the waiting, because cancelling a sweep can take long.
    """
    try:
        while True:
            states = {point.run: state_of(run_of(point)) for point in sweep.points}
            if all(state is not None and state.is_final for state in states.values()):
                break
            time.sleep(pause)
    except KeyboardInterrupt:
        click.echo(f"{sweep.sweep_id} continues; to cancel it: zlaunch cancel {sweep.sweep_id}", err=True)
        raise
    bad = [f"{run} {state.value if state else ''}" for run, state in states.items() if state is not RunState.SUCCEEDED]
    if not bad:
        return 0
    failed = RunFailed(
        f"{len(bad)} of {len(states)} points did not succeed: {', '.join(bad)}",
        hint=f"zlaunch report {sweep.sweep_id}; zlaunch resume {sweep.sweep_id} starts only these again",
    )
    if RunState.CANCELLED not in states.values():
        raise failed
    click.echo(failed.text, err=True)
    return 130


def _print_submitted(sweep: Sweep, job: str, indices: Sequence[int], as_json: bool) -> None:
    points = [sweep.points[index] for index in indices]
    if as_json:
        row = {"sweep": sweep.sweep_id, "job": job, "runs": [point.run for point in points]}
        click.echo(json.dumps({**row, "directory": str(sweeps_root() / sweep.sweep_id)}))
        return
    click.echo(f"job {job}: {sweep.sweep_id}")
    for index, point in zip(indices, points, strict=True):
        click.echo(f"  {job}_{index}  {point.run}  {label(point.values)}")
    click.echo(f"  zlaunch report {sweep.sweep_id}")

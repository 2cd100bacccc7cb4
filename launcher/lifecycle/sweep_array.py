"""A sweep on Slurm: its points are one array job, or several where MaxArraySize is smaller."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from launcher.backends import backend_of
from launcher.backends.base import Arrays
from launcher.errors import RunFailed, TargetError, UsageError, ZlaunchError
from launcher.job.load import read_job
from launcher.lifecycle import checks, submit
from launcher.lifecycle.attach import print_notes
from launcher.lifecycle.sweep import (
    Load,
    Sweep,
    claim,
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
from launcher.machine.language import spoken
from launcher.plan.types import RunPlan
from launcher.render import sbatch
from launcher.rundir.directory import RunDir, RunRecord, write_atomic
from launcher.rundir.find import RENDERED
from launcher.rundir.state import RunState


@dataclass(frozen=True)
class Part:
    """The points that are one array job; several parts where a cluster's arrays cannot hold all points."""

    script: Path
    name: str
    """The job's name."""
    points: tuple[tuple[int, int, RunDir], ...]
    """(index in the sweep, index in the array, run)."""


def parts_of(sweep: Sweep, indices: Sequence[int] | None = None) -> list[Part]:
    """Return the parts with those points of the sweep, all by default."""
    size = sweep.array_size or len(sweep.points)
    folder, parts = sweeps_root() / sweep.sweep_id, []
    for number in range(-(-len(sweep.points) // size)):
        end = f"-{number + 1}" if number else ""
        inside = range(number * size, min((number + 1) * size, len(sweep.points)))
        points = [(i, i - number * size, run_of(sweep.points[i])) for i in inside if indices is None or i in indices]
        if points:
            parts.append(Part(folder / f"sweep{end}.sbatch", f"{sweep.sweep_id}{end}", tuple(points)))
    return parts


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
    """Submit all points as array jobs. Returns at once, or with `follow` when the last point has ended.

    `dry_run`: only write the files, and print the batch scripts unless `quiet`.
    """
    jobs = make_points(texts, load, overrides, fixed=("slurm", "secrets", "notify", "device"))
    secrets = {} if dry_run else checks.read_secrets(jobs[0][0])
    for spec in distinct_data(job.spec for job, _ in jobs):
        checks.check_records(spec, facts.model_directory(spec.model.path, spec.env))
    backend = backend_of("slurm")
    assert isinstance(backend, Arrays)
    made = [(submit.prepare(job, backend.target(job.spec), records_checked=True), values) for job, values in jobs]
    plans = {run.run_id: plan for (run, plan), _ in made}
    first = made[0][0][1]
    assert first.slurm is not None
    points = [(run, values) for (run, _), values in made]
    sweep = new_sweep(name_of(jobs), "slurm", points, backend.most_elements(first))
    directory = save(sweep)
    parts = parts_of(sweep)
    print_notes(first)
    for part in parts:
        runs = [run.run_id for _, _, run in part.points]
        text = sbatch.script(first.slurm, runs, [f"../../{run}" for run in runs], part.name)
        write_atomic(part.script, text)
        if dry_run and not quiet:
            click.echo(text, nl=False)
    if dry_run:
        for (run, _), _ in made:
            run.event(RENDERED)
        if as_json:
            click.echo(json.dumps({"sweep": sweep.sweep_id, "runs": [*plans], "directory": str(directory)}))
        else:
            click.echo(f"rendered {directory} and {len(made)} run directories; nothing was submitted", err=True)
        return 0
    with claim(sweep, "start"):
        _submit_parts(sweep, parts, plans, secrets, backend)
    _print_submitted(sweep, range(len(made)), as_json)
    return wait(sweep) if follow else 0


def resume_sweep(sweep: Sweep, *, as_json: bool) -> int:
    """Submit the points that did not succeed. Raises UsageError."""
    with claim(sweep, "resume"):  # before the questions, so that no other command starts a point after them
        todo = unfinished(sweep)
        runs = [run_of(sweep.points[index]) for index in todo]
        plans = {run.run_id: msgspec.json.decode(run.plan_json.read_bytes(), type=RunPlan) for run in runs}
        secrets = checks.read_secrets(read_job(runs[0].job_yaml))
        backend = backend_of("slurm")
        assert isinstance(backend, Arrays)
        if alive := backend.alive_among(runs):  # whatever their records say
            raise UsageError(
                f"still queued or running: {', '.join(sorted(alive))}",
                hint=f"wait, or cancel them: zlaunch cancel {sweep.sweep_id}",
                code="ZL-RUN-03",
            )
        _submit_parts(sweep, parts_of(sweep, todo), plans, secrets, backend)
    _print_submitted(sweep, todo, as_json)
    return 0


def _submit_parts(
    sweep: Sweep, parts: Sequence[Part], plans: Mapping[str, RunPlan], secrets: Mapping[str, str], backend: Arrays
) -> None:
    """Queue each part. Every point has its record before, so that no job is lost whatever happens after sbatch."""
    every = [(part, index, run) for part in parts for _, index, run in part.points]
    before = {
        run.run_id: submit.write_record(
            run, plans[run.run_id], extra={"sweep": sweep.sweep_id, "array": [part.name, index]}
        )
        for part, index, run in every
    }
    runs = [run for _, _, run in every]
    limited = bool((plans[runs[0].run_id].slurm or {})["asked"]["array_limit"])
    after = ""
    for number, part in enumerate(parts):
        try:
            ids = _submit_part(part, plans, secrets, backend, after)
        except submit.StartNotRecorded:
            raise
        except ZlaunchError as error:
            for refused, _, run in every:
                if refused in parts[number:]:
                    _undo_record(run, before[run.run_id], error)
            if number:
                queued = f"{number} of {len(parts)} arrays are queued"
                error.hint = f"{queued}; when they are over: zlaunch resume {sweep.sweep_id}"
            raise
        except KeyboardInterrupt:
            _cancel(sweep, runs, backend)
            raise
        after = ids[0] if ids and limited else ""  # the limit counts for the whole sweep
    if cancelled := [run for run in runs if run.record.state == RunState.CANCELLED.value]:
        _cancel(sweep, cancelled, backend)  # by another command, which could not see their jobs yet


def _submit_part(
    part: Part, plans: Mapping[str, RunPlan], secrets: Mapping[str, str], backend: Arrays, after: str
) -> tuple[str, ...]:
    """Queue one array job and record the job of each point."""
    points = [(index, run, plans[run.run_id]) for _, index, run in part.points]
    ids = backend.submit_array(part.script, points, secrets, after=after)
    for (_, run, plan), job in zip(points, ids, strict=False):
        submit.record_start(run, plan, (job,))
    return ids


def _undo_record(run: RunDir, before: RunRecord | None, error: ZlaunchError) -> None:
    """Record that a point was not queued: a new one has failed, and a resumed one goes back to what it was."""
    with contextlib.suppress(OSError):
        run.event("not_started", error=str(error), hint=error.hint)
        if before is None:
            run.update_record(state=RunState.FAILED.value)
        else:
            run.save_record(before)


def _cancel(sweep: Sweep, runs: Sequence[RunDir], backend: Arrays) -> None:
    """Cancel points whose jobs may be queued already."""
    failed: dict[str, ZlaunchError] = {}
    try:
        failed |= backend.cancel_all(runs, checkpoint=False)
    except ZlaunchError as error:
        failed |= dict.fromkeys([run.run_id for run in runs], error)
    for run in runs:
        if run.run_id not in failed:
            run.update_record(state=RunState.CANCELLED.value)
    for run_id, reason in failed.items():
        spoken.tell(TargetError(f"{run_id} was not cancelled and may still run: {reason}", code="ZL-RUN-06"))
    state = f"{len(runs) - len(failed)} of {len(runs)} points are cancelled"
    click.echo(f"{sweep.sweep_id}: {state}; zlaunch cancel {sweep.sweep_id} tries again" if failed else
               f"{sweep.sweep_id}: {state}", err=True)  # fmt: skip


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


def _print_submitted(sweep: Sweep, indices: Sequence[int], as_json: bool) -> None:
    points = [sweep.points[index] for index in indices]
    ids = {point.run: next(iter(run_of(point).record.ids), "") for point in points}
    jobs = list(dict.fromkeys(re.sub(r"_\d+", "", job) for job in ids.values() if job))
    if as_json:
        row = {"sweep": sweep.sweep_id, "job": jobs[0] if jobs else "", "jobs": jobs, "runs": [*ids]}
        click.echo(json.dumps({**row, "directory": str(sweeps_root() / sweep.sweep_id)}))
        return
    click.echo(f"job {' '.join(jobs) or 'without a known id'}: {sweep.sweep_id}")
    for point in points:
        click.echo(f"  {ids[point.run]}  {point.run}  {label(point.values)}")
    click.echo(f"  zlaunch report {sweep.sweep_id}")

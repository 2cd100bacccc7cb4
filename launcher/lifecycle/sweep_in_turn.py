"""A sweep on this machine or over SSH: its points run one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from launcher.errors import UsageError, ZlaunchError
from launcher.job.load import dump_job, read_job
from launcher.job.spec import Job
from launcher.lifecycle import sweep
from launcher.lifecycle.sweep import IsCancelled, Load, Sweep
from launcher.machine.language import spoken
from launcher.rundir.directory import RunDir, write_atomic
from launcher.rundir.find import new_run

Start = Callable[[Job, RunDir, IsCancelled], int]
"""Follows a run until it ends; returns the exit code."""


def refuse_detach(detach: bool) -> None:
    """Raise UsageError: the next point needs a command that starts it."""
    if detach:
        raise UsageError(
            "--sweep and --detach contradict each other here", hint="run it in tmux or under nohup", code="ZL-OPT-01"
        )


def run_sweep(texts: Sequence[str], load: Load, overrides: Sequence[str], start: Start, *, backend: str) -> int:
    """Run every point with `start`; a point that fails does not stop the others.

    Returns 0 if all succeeded, 130 after Ctrl-C or `zlaunch cancel`, 1 if a point failed, 2 if all errors were wrong
    requests.
    """
    jobs = sweep.make_points(texts, load, overrides)
    made = [(job, new_run(job.spec.name), values) for job, values in jobs]
    points = sweep.new_sweep(sweep.name_of(jobs), backend, [(run, values) for _, run, values in made])
    for job, run, _ in made:
        write_atomic(sweep.job_file(points, run), dump_job(job))
    is_cancelled = sweep.watch_cancelled(points)  # before `save`: from then on others find the sweep and may cancel it
    sweep.save(points)
    with sweep.claim(points, "start --sweep", in_turn=True):
        return _run_points(points, range(len(made)), lambda index: start(*made[index][:2], is_cancelled), is_cancelled)


def resume_sweep(points: Sweep, start: Start) -> int:
    """Run the points that did not succeed: each from its checkpoint, or for the first time."""
    is_cancelled = sweep.watch_cancelled(points)

    def resume_point(index: int) -> int:
        run = sweep.run_of(points.points[index])
        return start(read_job(sweep.job_file(points, run)), run, is_cancelled)

    with sweep.claim(points, "resume", in_turn=True):
        return _run_points(points, sweep.unfinished(points), resume_point, is_cancelled)


def _run_points(points: Sweep, todo: Sequence[int], start: Callable[[int], int], is_cancelled: IsCancelled) -> int:
    """Start each point when the one before has ended, until the sweep is cancelled."""
    click.echo(f"sweep {points.sweep_id}: {len(todo)} points, one after another", err=True)
    codes = []
    for index in todo:
        if is_cancelled():
            codes.append(130)
            break
        values = sweep.label(points.points[index].values)
        click.echo(f"point {index + 1} of {len(points.points)}: {values}", err=True)
        try:
            codes.append(start(index))
        except ZlaunchError as error:
            spoken.tell(error)
            codes.append(error.exit_code)
        if codes[-1] == 130:
            break
    if 130 in codes and is_cancelled():
        click.echo(f"{points.sweep_id} was cancelled: no further point is started", err=True)
    click.echo(f"sweep {points.sweep_id}\n  zlaunch report {points.sweep_id}", err=True)
    if 130 in codes:
        click.echo(f"  zlaunch resume {points.sweep_id}", err=True)
    return next((code for code in (130, 1, 2) if code in codes), 0)

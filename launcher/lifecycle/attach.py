"""What every launching command does once the job is loaded and the target known: prepare, submit, follow, sum up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import IO, Any

import click
from rich.console import Console
from rich.markup import escape

from launcher.backends.base import Backend
from launcher.job.spec import Job
from launcher.lifecycle import checks, submit
from launcher.lifecycle.interrupted import StartInterrupted, state_after, stop, take_back
from launcher.machine.interrupts import like_ctrl_c
from launcher.plan.types import RunPlan, Target
from launcher.rundir import summary
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState
from launcher.show.live import watch

EXIT = {RunState.SUCCEEDED: 0, RunState.CANCELLED: 130}
"""Exit status by final state; every other is 1."""


def launch(
    job: Job,
    target: Target,
    backend: Backend,
    *,
    smoke: bool = False,
    dry_run: bool = False,
    detach: bool = False,
    as_json: bool = False,
    run: RunDir | None = None,
    revoked: Callable[[], bool] | None = None,
    **record: Any,
) -> int:
    """Take a job to its end (or to its start, with `detach`; or to its files, with `dry_run`); return the exit code.

    `revoked`: asked once the run has started, it says whether somebody cancelled it before it could be found.
    """
    secrets = {} if dry_run else checks.read_secrets(job.spec.secrets)
    run, plan = submit.prepare(job, target, run=run)
    if dry_run:
        return say_rendered(run, plan, as_json)
    if detach:
        submit.submit(run, plan, backend, secrets, **record)
        return _say_detached(run, as_json)
    return start_and_follow(run, plan, backend, secrets, smoke=smoke, as_json=as_json, revoked=revoked, **record)


def start_and_follow(
    run: RunDir,
    plan: RunPlan,
    backend: Backend,
    secrets: dict[str, str],
    *,
    smoke: bool = False,
    as_json: bool = False,
    revoked: Callable[[], bool] | None = None,
    **record: Any,
) -> int:
    """Start a prepared run and follow it to its end; whenever a Ctrl-C comes, nothing of the run is left behind."""
    from launcher.show import final  # noqa: F401 - Rich, before the start: a Ctrl-C must find everything ready

    with like_ctrl_c():
        try:
            submit.submit(run, plan, backend, secrets, **record)
            if revoked is not None and revoked():
                raise KeyboardInterrupt  # somebody's on another terminal
            return attach(run, backend, smoke=smoke, as_json=as_json)
        except StartInterrupted as start:
            return _broken_off(run, RunState.CANCELLED if start.ended else RunState.RUNNING, as_json)
        except KeyboardInterrupt:  # between the start and the first look
            if not run.run_json.exists():
                raise  # before the start
            return _broken_off(run, state_after(run, backend, take_back(run, backend)), as_json)


def attach(run: RunDir, backend: Backend, *, smoke: bool = False, as_json: bool = False) -> int:
    """Follow a submitted run to its end and print what came of it."""

    asked = run.record
    state = follow(run, backend, show=sys.stderr if as_json else sys.stdout)
    # Somebody may have resumed it while its results came home.
    run.update_record(only_if=lambda now: now.start == asked.start, state=state.value)
    if not state.is_final:
        return _not_ended(run, state, as_json)
    return conclude(run, state, smoke=smoke, as_json=as_json)


def _broken_off(run: RunDir, state: RunState, as_json: bool) -> int:
    """Record and say what came of an interrupted start; of one that could not be taken back the user has been told."""
    run.update_record(state=state.value)
    return conclude(run, state, as_json=as_json) if state.is_final else _not_ended(run, state, as_json)


def _not_ended(run: RunDir, state: RunState, as_json: bool) -> int:
    """The exit code of an interrupt that could not end its run: not that of a run that failed."""
    if as_json:
        click.echo(json.dumps(summary.of(run, state)))
    return EXIT[RunState.CANCELLED]


def conclude(run: RunDir, state: RunState, *, smoke: bool = False, as_json: bool = False) -> int:
    """Print what came of a run; the exit code."""
    from launcher.show import final

    problems = summary.smoke_problems(run) if smoke and state is RunState.SUCCEEDED else []
    final.print_outcome(run, state, show=sys.stderr if as_json else sys.stdout)
    for problem in problems:
        click.echo(f"smoke: {problem}", err=True)
    if as_json:
        click.echo(json.dumps({**summary.of(run, state), **({"smoke_problems": problems} if smoke else {})}))
    return 1 if problems else EXIT.get(state, 1)


def say_rendered(run: RunDir, plan: RunPlan, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"run": run.run_id, "directory": str(run.path), "world_size": plan.launch.world_size}))
        return 0
    click.echo(f"rendered {run.path}")
    for reason in plan.reasons:
        click.echo(f"  {reason.setting} = {reason.value}: {reason.reason}")
    click.echo(f"  ranks: {plan.launch.world_size}, nodes: {len(plan.launch.nodes)}; nothing was started")
    return 0


def _say_detached(run: RunDir, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"run": run.run_id, "state": run.record.state, "directory": str(run.path)}))
    else:
        click.echo(f"{run.run_id}\n  zlaunch status {run.run_id}\n  zlaunch logs -f {run.run_id}")
    return 0


def follow(run: RunDir, backend: Backend, *, show: IO[str]) -> RunState:
    """Show the run until it ends; Ctrl-C asks for a checkpoint and stops it, a second one does not wait for that.

    The state is final, but for a run that a Ctrl-C could not end: the user has been told why.
    """
    console = Console(file=show)
    console.print(f"[bold]{escape(run.run_id)}[/bold]  {escape(str(run.path))}", highlight=False, soft_wrap=True)
    try:
        return watch(run, backend, console)
    except KeyboardInterrupt:
        console.print("stopping: a checkpoint first (Ctrl-C again: at once) ...")
        return stop(run, backend)

"""What every launching command does with a loaded job: prepare, submit, follow, summarize."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import IO, Any

import click

from launcher.backends import target_to_resume
from launcher.backends.base import Backend
from launcher.errors import TargetError
from launcher.job.load import read_job
from launcher.job.spec import Job
from launcher.lifecycle import checks, submit
from launcher.lifecycle.interrupted import StartInterrupted, cancel_start, state_after_cancel, stop
from launcher.machine import output
from launcher.machine.language import spoken
from launcher.plan import agent_plan
from launcher.plan.types import RunPlan, Target
from launcher.rundir import summary
from launcher.rundir.directory import RunDir
from launcher.rundir.find import RENDERED
from launcher.rundir.state import RunState

EXIT = {RunState.SUCCEEDED: 0, RunState.CANCELLED: 130}
"""Exit code per final state; all others are 1."""


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
    is_cancelled: Callable[[], bool] | None = None,
    **record: Any,
) -> int:
    """Run a job until it ends, or only start it (`detach`), or only write its files (`dry_run`). Returns the exit code.

    `is_cancelled` is called once the run has started, to detect a cancel from before the run could be found.
    """
    secrets = {} if dry_run else checks.read_secrets(job)
    run, plan = submit.prepare(job, target, run=run)
    print_notes(plan)
    if dry_run:
        return print_rendered(run, plan, as_json)
    if detach:
        try:
            submit.submit(run, plan, backend, secrets, **record)
        except StartInterrupted as start:
            return finish_interrupted_start(run, start, as_json)
        return _print_detached(run, as_json)
    options: dict[str, Any] = {"smoke": smoke, "as_json": as_json, "is_cancelled": is_cancelled}
    return start_and_follow(run, plan, backend, secrets, **options, **record)


def start_and_follow(
    run: RunDir,
    plan: RunPlan,
    backend: Backend,
    secrets: dict[str, str],
    *,
    smoke: bool = False,
    as_json: bool = False,
    is_cancelled: Callable[[], bool] | None = None,
    **record: Any,
) -> int:
    """Start a prepared run and follow it until it ends. A Ctrl-C at any time leaves nothing of the run behind."""
    from launcher.show import final, live  # noqa: F401 - load Rich before the start, so that a Ctrl-C finds it there

    output.make_optional()
    try:
        submit.submit(run, plan, backend, secrets, **record)
        if is_cancelled is not None and is_cancelled():
            raise KeyboardInterrupt  # `zlaunch cancel` in another terminal
        # No further point of a sweep starts beside one that its user has left.
        left = 0 if is_cancelled is None else EXIT[RunState.CANCELLED]
        return attach(run, backend, smoke=smoke, as_json=as_json, left=left)
    except StartInterrupted as start:
        return finish_interrupted_start(run, start, as_json)
    except KeyboardInterrupt:  # after the start and before the first look
        if not run.run_json.exists():
            raise  # before the start
        cancelled = cancel_start(run, backend)
        return _finish_interrupted(run, state_after_cancel(run, backend, cancelled), as_json)


def attach(run: RunDir, backend: Backend, *, smoke: bool = False, as_json: bool = False, left: int = 0) -> int:
    """Follow a submitted run until it ends, then print its result. Returns the exit code.

    `left`: that of a user who leaves the view.
    """
    from launcher.show.live import Left

    start = run.record.start
    try:
        state = follow(run, backend, output=sys.stderr if as_json else sys.stdout)
    except Left:
        leave(run, as_json=as_json)
        return left
    # The run may have been resumed while its results were copied here.
    with contextlib.suppress(OSError):  # a full disk must not hide how the run ended
        run.update_record(only_if=lambda record: record.start == start, state=state.value)
    if _goes_on_without_first_host(run, state):
        return _go_on(run, backend, smoke=smoke, as_json=as_json)
    return conclude(run, state, smoke=smoke, as_json=as_json)


TAKEN_OVER = "taken_over"
"""In run.json under `extra`: how often the run went on without its first host."""


def _goes_on_without_first_host(run: RunDir, state: RunState) -> bool:
    """Whether an elastic run has lost the host that leads it. Its agents go on without any other host by themselves."""
    failure = summary.failure(run) or {} if state is RunState.FAILED else {}
    if (failure.get("cause"), failure.get("node_rank")) != ("lost_host", 0):
        return False
    spec = read_job(run.job_yaml).spec
    return spec.elastic and int(run.record.extra.get(TAKEN_OVER, 0)) < spec.max_restarts


def _go_on(run: RunDir, backend: Backend, *, smoke: bool, as_json: bool) -> int:
    """Start the run again on those of its hosts that answer, from the newest checkpoint that one of them has."""
    click.echo("the first host is lost; the run goes on with the hosts that answer", err=True)
    job = read_job(submit.job_to_resume(run))
    extra = {**run.record.extra, TAKEN_OVER: int(run.record.extra.get(TAKEN_OVER, 0)) + 1}
    run.claim("resume")
    try:
        target = target_to_resume(run.record.backend, job.spec)
        return launch(job, target, backend, smoke=smoke, as_json=as_json, run=run, extra=extra)
    except TargetError as error:
        click.echo(f"it cannot: {error}", err=True)
        return conclude(run, RunState.FAILED, smoke=smoke, as_json=as_json)
    finally:
        run.release()


def _summary(run: RunDir, state: RunState) -> dict[str, Any]:
    from launcher.rundir import reading  # a dry run reads no run

    return reading.summarize(run, state)


def leave(run: RunDir, *, as_json: bool = False) -> None:
    """Say how to come back to a run that goes on."""
    if as_json:
        click.echo(json.dumps(_summary(run, RunState.RUNNING)))
    click.echo(f"{run.run_id} goes on\n  zlaunch watch {run.run_id}\n  zlaunch cancel {run.run_id}", err=as_json)


def finish_interrupted_start(run: RunDir, start: StartInterrupted, as_json: bool) -> int:
    """Print what became of a run whose start was cancelled, and by whom. Returns the exit code."""
    if start.elsewhere and start.cancelled:
        spoken.say(f"{run.run_id} was cancelled during its start by another command (`zlaunch cancel`)")
    return _finish_interrupted(run, RunState.CANCELLED if start.cancelled else RunState.RUNNING, as_json)


def _finish_interrupted(run: RunDir, state: RunState, as_json: bool) -> int:
    with contextlib.suppress(OSError):
        run.update_record(state=state.value)
    return conclude(run, state, as_json=as_json)


def conclude(run: RunDir, state: RunState, *, smoke: bool = False, as_json: bool = False) -> int:
    """Print the result of a run. Returns the exit code.

    A state that is not final is that of a run that a Ctrl-C could not cancel; the user knows why.
    """
    if not state.is_final:
        if as_json:
            click.echo(json.dumps(_summary(run, state)))
        return EXIT[RunState.CANCELLED]
    from launcher.show import final
    from launcher.show.page import write

    problems = summary.smoke_problems(run) if smoke and state is RunState.SUCCEEDED else []
    final.print_outcome(run, state, output=sys.stderr if as_json else sys.stdout)
    if page := write.write_if_new(run, state):
        click.echo(f"{spoken.said('report')}: {page}", err=as_json)
    for problem in problems:
        spoken.say(f"smoke: {problem}")
    if as_json:
        click.echo(json.dumps({**_summary(run, state), **({"smoke_problems": problems} if smoke else {})}))
    return 1 if problems else EXIT.get(state, 1)


def print_notes(plan: RunPlan) -> None:
    """Tell what the user should know before the run starts."""
    for note in plan.notes:
        spoken.say(f"note: {note}")


def print_rendered(run: RunDir, plan: RunPlan, as_json: bool) -> int:
    """Say what a dry run has written, and note that nobody is about to start it."""
    run.event(RENDERED)
    if as_json:
        click.echo(json.dumps({"run": run.run_id, "directory": str(run.path), "world_size": plan.launch.world_size}))
        return 0
    click.echo(spoken.said("rendered {place}", place=run.path))
    for reason in plan.reasons:
        click.echo(f"  {reason.setting} = {reason.value}: {spoken.shown(reason.reason)}")
    for line in agent_plan.reporting_lines(plan.launch.trackers, plan.launch.notify):
        click.echo(f"  {spoken.shown(line)}")
    counts = {"ranks": plan.launch.world_size, "nodes": len(plan.launch.nodes)}
    click.echo(spoken.said("  ranks: {ranks}, nodes: {nodes}; nothing was started", **counts))
    return 0


def _print_detached(run: RunDir, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"run": run.run_id, "state": run.record.state, "directory": str(run.path)}))
    else:
        commands = ("watch", "status", "logs -f")
        click.echo("\n".join([run.run_id, *(f"  zlaunch {command} {run.run_id}" for command in commands)]))
    return 0


def follow(run: RunDir, backend: Backend, *, output: IO[str]) -> RunState:
    """Show the run until it ends. Ctrl-C saves a checkpoint and stops it; a second Ctrl-C skips the checkpoint.

    Returns a final state, or RUNNING for a run that a Ctrl-C could not stop. Raises Left if the user left the view.
    """
    from rich.markup import escape

    from launcher.show.live import watch
    from launcher.show.terminal import Console

    console = Console(file=output)
    console.print(f"[bold]{escape(run.run_id)}[/bold]  {escape(str(run.path))}", highlight=False, soft_wrap=True)
    try:
        return watch(run, lambda: backend.state(run), console)
    except KeyboardInterrupt:
        console.print(spoken.said("stopping after a checkpoint (Ctrl-C again: stop now) ..."))
        return stop(run, backend)

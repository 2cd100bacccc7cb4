"""`zlaunch resume RUN`: go on from the newest complete checkpoint, on the same ranks or on others."""

from __future__ import annotations

from typing import Any

import click

from launcher import runs, spec, state, submit, sweep
from launcher.backends import backend_of
from launcher.backends.base import Backend, RunState
from launcher.commands.options import run_options
from launcher.commands.outcome import launch
from launcher.commands.runs import checkpoints
from launcher.errors import UsageError
from launcher.plan import Target
from launcher.runs import RunDir
from launcher.slurm_target import slurm_target
from launcher.spec import Job


@click.command()
@click.argument("run")
@click.option("--gpus", type=int, help="Another number of GPUs; the global batch stays.")
@click.option("--procs", type=int, help="Another number of CPU ranks; the global batch stays.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the job.")
@run_options
def resume(
    run: str,
    gpus: int | None,
    procs: int | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    detach: bool,
    as_json: bool,
) -> int:
    """Go on with RUN from its newest complete checkpoint (from the start if it has none).

    RUN may be a sweep: its points that did not succeed start again.
    """
    if points := sweep.find(run):
        return resume_sweep(points, as_json=as_json)
    found = runs.find_run(run, runs.runs_root())
    refuse_if_not_resumable(found, bool(overrides))
    flags = {"local.gpus": gpus, "local.procs": procs}
    job = spec.load(found.job_yaml, overrides, flags)
    target, backend = where(job, found.record.backend)
    submit.refuse_procs_on_gpus(procs, target)
    if not as_json:
        click.echo(_from_where(found))
    extra = found.record.extra
    return launch(job, target, backend, dry_run=dry_run, detach=detach, as_json=as_json, run=found, extra=extra)


def resume_sweep(points: sweep.Sweep, *, as_json: bool) -> int:
    """The points that did not succeed: as one array on Slurm, elsewhere one after another."""
    if points.backend == "slurm":
        return sweep.resume_on_slurm(points, as_json=as_json)

    def again(job: Job, run: RunDir) -> int:
        target, backend = where(job, points.backend)
        extra = run.record.extra if run.run_json.exists() else {}
        return launch(job, target, backend, as_json=as_json, run=run, extra=extra)

    return sweep.resume_in_turn(points, again)


def _from_where(run: RunDir) -> str:
    steps = checkpoints(run)
    if steps:
        return f"from the checkpoint of step {steps[-1]}"
    return "from the newest checkpoint on its hosts" if run.record.backend == "ssh" else "no checkpoint: from the start"


def refuse_if_not_resumable(run: RunDir, changed: bool) -> None:
    """Raises UsageError for a run that still runs, or is done and nothing of its job was changed."""
    now = state.of(run)
    if not now.is_final:
        raise UsageError(f"{run.run_id} is {now.value}", hint=f"zlaunch cancel {run.run_id} ends it first")
    if now is RunState.SUCCEEDED and not changed:
        raise UsageError(f"{run.run_id} has succeeded", hint="to train longer: zlaunch resume RUN --set train.epochs=N")


def where(job: Job, name: str) -> tuple[Target, Backend]:
    """The target of a backend, as facts are now, and the backend."""
    if name == "ssh":
        from launcher.commands.ssh import target_and_backend  # Fabric: a third of a second

        return target_and_backend(job)  # the survey's connections are the backend's
    makers: dict[str, Any] = {"local": submit.local_target, "slurm": slurm_target}
    return makers[name](job.spec), backend_of(name)

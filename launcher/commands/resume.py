"""`zlaunch resume RUN`: go on from the newest complete checkpoint, on the same ranks or on others."""

from __future__ import annotations

import shutil

import click

from launcher.backends import backend_of, current_state, target_of
from launcher.backends.local.devices import refuse_procs_on_gpus
from launcher.commands.options import run_options
from launcher.errors import TargetError, UsageError
from launcher.job.load import read_job
from launcher.job.spec import Job
from launcher.lifecycle import checks, submit, sweep, sweep_array
from launcher.lifecycle.attach import launch, say_rendered
from launcher.plan.types import Target
from launcher.rundir import summary
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState


@click.command()
@click.argument("run")
@click.option("--gpus", type=int, help="Another number of this machine's GPUs; the global batch stays.")
@click.option("--procs", type=int, help="Another number of CPU ranks here; the global batch stays.")
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
    found = sweep.named(run)
    if isinstance(found, sweep.Sweep):
        changes = {"--gpus": gpus, "--procs": procs, "--set": overrides, "--dry-run": dry_run}
        refuse_changes_of_sweep(found, [flag for flag, value in changes.items() if value], detach)
        return resume_sweep(found, as_json=as_json)
    refuse_local_flags(found, gpus or procs)
    refuse_if_not_resumable(found, bool(overrides))
    flags = {"local.gpus": gpus, "local.procs": procs}
    file = submit.job_to_resume(found)
    job = read_job(file, overrides, flags)
    target = target_again(job, found.record.backend)
    refuse_procs_on_gpus(procs, target)
    if dry_run:
        place = RunDir(found.path.parent / "resume-dry-run" / found.run_id)  # no file of the run is touched
        shutil.rmtree(place.path, ignore_errors=True)
        return say_rendered(*submit.prepare(job, target, run=found, into=place), as_json)
    if not as_json:
        click.echo(_from_where(found))
        if file != found.job_yaml:
            click.echo(f"with the settings before the last start, whose own were refused: {_refusal(found)}")
    try:
        backend = backend_of(found.record.backend)
        return launch(job, target, backend, detach=detach, as_json=as_json, run=found, extra=found.record.extra)
    except TargetError:
        if overrides or gpus or procs:
            click.echo(f"{found.run_id} is as it was: a later resume needs these flags again", err=True)
        raise


def refuse_changes_of_sweep(points: sweep.Sweep, flags: list[str], detach: bool) -> None:
    """A sweep's points go on as they are; a flag that would count for nothing is refused. Raises UsageError."""
    if flags:
        raise UsageError(
            f"{' and '.join(flags)}: the points of a sweep go on as they are",
            hint=f"resume a point of its own: zlaunch report {points.sweep_id} lists them",
        )
    if points.backend != "slurm":
        sweep.refuse_detach(detach)


def refuse_local_flags(run: RunDir, ranks: int | None) -> None:
    """--gpus and --procs count this machine's ranks, and would say nothing to other hosts. Raises UsageError."""
    if ranks and run.record.backend != "local":
        hints = {
            "ssh": "say --set ssh.slots=N, or change the hostfile",
            "slurm": "say --set slurm.nodes=N, slurm.gpus_per_node=N or slurm.procs_per_node=N",
        }
        raise UsageError(
            f"--gpus and --procs are for runs on this machine; {run.run_id} is a {run.record.backend} run",
            hint=hints.get(run.record.backend),
        )


def resume_sweep(points: sweep.Sweep, *, as_json: bool) -> int:
    """The points that did not succeed: as one array on Slurm, elsewhere one after another."""
    if points.backend == "slurm":
        return sweep_array.resume_on_slurm(points, as_json=as_json)

    def again(job: Job, run: RunDir, revoked: sweep.Revoked) -> int:
        target = target_again(job, points.backend)
        extra = run.record.extra if run.run_json.exists() else {}
        return launch(job, target, backend_of(points.backend), as_json=as_json, run=run, revoked=revoked, extra=extra)

    return sweep.resume_in_turn(points, again)


def _from_where(run: RunDir) -> str:
    steps = run.checkpoint_steps()
    if steps:
        return f"from the checkpoint of step {steps[-1]}"
    return "from the newest checkpoint on its hosts" if run.record.backend == "ssh" else "no checkpoint: from the start"


def _refusal(run: RunDir) -> str:
    return str((summary.refused_settings(run) or {}).get("message"))


def refuse_if_not_resumable(run: RunDir, changed: bool) -> None:
    """Raises UsageError for a run that still runs, or is done and nothing of its job was changed."""
    now = current_state.current(run)
    if not now.is_final:
        raise UsageError(f"{run.run_id} is {now.value}", hint=f"zlaunch cancel {run.run_id} ends it first")
    if now is RunState.SUCCEEDED and not changed:
        raise UsageError(f"{run.run_id} has succeeded", hint="to train longer: zlaunch resume RUN --set train.epochs=N")


def target_again(job: Job, backend: str) -> Target:
    """Return the facts about the place where the run goes on. Missing inputs are told before any host is asked."""
    checks.check_inputs(job.spec, backend)
    return target_of(backend, job.spec)

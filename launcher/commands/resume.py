"""`zlaunch resume RUN|SWEEP`: continue from the newest complete checkpoint, on the same ranks or on others."""

from __future__ import annotations

import shutil

import click

from launcher.backends import backend_of, backend_of_run, current_state, target_to_resume
from launcher.backends.local.devices import refuse_procs_on_gpus
from launcher.commands.options import run_options
from launcher.errors import TargetError, UsageError
from launcher.job.load import read_job
from launcher.job.spec import Job
from launcher.lifecycle import cancel, checks, submit, sweep, sweep_array, sweep_in_turn
from launcher.lifecycle.attach import launch, print_rendered
from launcher.plan.types import Target
from launcher.rundir import summary
from launcher.rundir.directory import RunDir


@click.command()
@click.argument("run")
@click.option("--gpus", type=int, help="New number of GPUs on this machine. The global batch size does not change.")
@click.option(
    "--procs", type=int, help="New number of CPU ranks on this machine. The global batch size does not change."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the job. May be repeated."
)
@click.option(
    "--rejoin",
    is_flag=True,
    help="Take hosts in again that an elastic run went on without: stop it after a checkpoint, then continue on all of "
    "its hosts that answer.",
)
@run_options
def resume(
    run: str,
    gpus: int | None,
    procs: int | None,
    overrides: tuple[str, ...],
    rejoin: bool,
    dry_run: bool,
    detach: bool,
    as_json: bool,
) -> int:
    """Continue RUN from its newest complete checkpoint, or from the start if it has none.

    RUN may be a sweep: then the points that did not succeed are started again.
    """
    found = sweep.find_run_or_sweep(run)
    if isinstance(found, sweep.Sweep):
        changes = {"--gpus": gpus, "--procs": procs, "--set": overrides, "--rejoin": rejoin, "--dry-run": dry_run}
        refuse_changes_of_sweep(found, [flag for flag, value in changes.items() if value], detach)
        return resume_sweep(found, as_json=as_json)
    refuse_local_flags(found, gpus or procs)
    if rejoin and not dry_run:
        stop_to_rejoin(found, as_json=as_json)
    if not dry_run:
        found.claim("resume")  # before the question, so that no other command starts or ends the run after it
    try:
        return resume_run(found, gpus, procs, overrides, dry_run=dry_run, detach=detach, as_json=as_json)
    finally:
        found.release()


def resume_run(
    found: RunDir,
    gpus: int | None,
    procs: int | None,
    overrides: tuple[str, ...],
    *,
    dry_run: bool,
    detach: bool,
    as_json: bool,
) -> int:
    """Start a run again that this command has claimed; a dry run only shows what it would do."""
    # A dry run starts nothing, so the record is enough; it also works where the cluster cannot be asked.
    state = current_state.current(found) if dry_run else current_state.observed(found)
    submit.refuse_if_not_resumable(found, state, bool(overrides))
    file = submit.job_to_resume(found)
    job = read_job(file, overrides, {"local.gpus": gpus, "local.procs": procs})
    target = current_target(job, found.record.backend)
    refuse_procs_on_gpus(procs, target)
    if dry_run:
        rendered = RunDir(found.path.parent / "resume-dry-run" / found.run_id)  # the run itself stays unchanged
        shutil.rmtree(rendered.path, ignore_errors=True)
        return print_rendered(*submit.prepare(job, target, run=found, into=rendered), as_json)
    if not as_json:
        click.echo(_starting_point(found))
        if file != found.job_yaml:
            refusal = (summary.refused_settings(found) or {}).get("message")
            click.echo(f"with the settings of the start before the last, whose settings were refused: {refusal}")
    try:
        backend = backend_of_run(found)
        return launch(job, target, backend, detach=detach, as_json=as_json, run=found, extra=found.record.extra)
    except TargetError:
        if overrides or gpus or procs:
            click.echo(f"{found.run_id} is unchanged: give these options again to resume it later", err=True)
        raise


def stop_to_rejoin(run: RunDir, *, as_json: bool) -> None:
    """Stop an elastic run after a checkpoint. Raises UsageError for any other run."""
    if run.record.backend != "ssh" or not read_job(run.job_yaml).spec.elastic:
        raise UsageError(
            f"--rejoin is for elastic runs on SSH hosts, and {run.run_id} is none",
            hint=f"zlaunch resume {run.run_id}",
            code="ZL-OPT-01",
        )
    result = cancel.cancel_run(run, checkpoint=True)
    if not as_json and result.was not in cancel.OVER:
        click.echo(f"stopped after {_starting_point(run).removeprefix('from ')}")


def refuse_changes_of_sweep(points: sweep.Sweep, flags: list[str], detach: bool) -> None:
    """Raise UsageError for options that would have no effect on the points of a sweep."""
    if flags:
        raise UsageError(
            f"{' and '.join(flags)}: the points of a sweep are resumed unchanged",
            hint=f"resume a single point; zlaunch report {points.sweep_id} lists them",
            code="ZL-OPT-01",
        )
    if points.backend != "slurm":
        sweep_in_turn.refuse_detach(detach)


def refuse_local_flags(run: RunDir, ranks: int | None) -> None:
    """Raise UsageError for --gpus and --procs of a run on other machines."""
    if ranks and run.record.backend != "local":
        hints = {
            "ssh": "use --set ssh.slots=N, or change the hostfile",
            "slurm": "use --set slurm.nodes=N, slurm.gpus_per_node=N or slurm.procs_per_node=N",
        }
        raise UsageError(
            f"--gpus and --procs are for runs on this machine; {run.run_id} is a {run.record.backend} run",
            hint=hints.get(run.record.backend),
            code="ZL-OPT-01",
        )


def resume_sweep(points: sweep.Sweep, *, as_json: bool) -> int:
    """Start the points that did not succeed: as one array job on Slurm, elsewhere one after another."""
    if points.backend == "slurm":
        return sweep_array.resume_sweep(points, as_json=as_json)

    def start(job: Job, run: RunDir, is_cancelled: sweep.IsCancelled) -> int:
        extra = {}
        if run.run_json.exists():
            run.claim("resume")
            extra = run.record.extra
        try:
            if run.run_json.exists():
                submit.refuse_if_not_resumable(run, current_state.observed(run), changed=False)
            target, backend = current_target(job, points.backend), backend_of(points.backend)
            return launch(job, target, backend, as_json=as_json, run=run, is_cancelled=is_cancelled, extra=extra)
        finally:
            run.release()

    return sweep_in_turn.resume_sweep(points, start)


def current_target(job: Job, backend: str) -> Target:
    """The target as it is now. Missing inputs are reported before any host is contacted."""
    checks.check_inputs(job.spec, backend)
    return target_to_resume(backend, job.spec)


def _starting_point(run: RunDir) -> str:
    if steps := run.checkpoint_steps():
        return f"from the checkpoint of step {steps[-1]}"
    return "from the newest checkpoint on its hosts" if run.record.backend == "ssh" else "from the start: no checkpoint"

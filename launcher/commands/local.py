"""`zlaunch local`: train on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from launcher.backends import backend_of, target_of
from launcher.backends.local.devices import refuse_procs_on_gpus
from launcher.commands.options import LaunchCommand, job_options, load_job, refuse_absent_script, run_options
from launcher.images import choose
from launcher.job.spec import Job, JobSpec
from launcher.lifecycle import sweep
from launcher.lifecycle.attach import launch
from launcher.machine import facts
from launcher.rundir.directory import RunDir


@click.command(cls=LaunchCommand)
@job_options
@click.option("--gpus", type=int, help="Ranks, one a GPU (default: every GPU).")
@click.option("--procs", type=int, help="Ranks on a CPU, with --device cpu.")
@click.option("--python", help="Interpreter of the training environment.")
@click.option("--sweep", "sweeps", multiple=True, metavar="KEY=A,B,C", help="One run for each combination, in turn.")
@run_options
@click.pass_context
def local(
    ctx: click.Context,
    /,
    job: Path | None,
    overrides: tuple[str, ...],
    smoke: bool,
    gpus: int | None,
    procs: int | None,
    python: str | None,
    sweeps: tuple[str, ...],
    dry_run: bool,
    detach: bool,
    as_json: bool,
    **parameters: Any,
) -> int:
    """Train on this machine's GPUs, or on CPU ranks.

    JOB: a job file; without one, job.yaml of the working directory, else the demonstration that ships with zlaunch.
    After `--`, any program of your own runs under the same agent instead.
    """

    def load(values: dict[str, Any]) -> Job:
        flags = {"local.gpus": gpus, "local.procs": procs, "local.python": python, **values}
        return load_job(ctx, job, overrides, smoke, parameters, flags)

    def start(asked: Job, run: RunDir | None = None, revoked: sweep.Revoked | None = None) -> int:
        target = target_of("local", asked.spec)
        refuse_procs_on_gpus(procs, target)
        refuse_absent_script(asked.spec, "local")
        if not dry_run:
            check_python(asked.spec)
        how = {"smoke": smoke, "dry_run": dry_run, "detach": detach, "as_json": as_json}
        return launch(asked, target, backend_of("local"), run=run, revoked=revoked, **how)

    if sweeps:
        sweep.refuse_detach(detach)
        return sweep.one_after_another(sweeps, load, overrides, start, backend="local")
    return start(load({}))


def check_python(job: JobSpec) -> None:
    """Whether an interpreter that the job names is there and, where it trains, can. Raises TargetError."""
    python = job.local.python
    if python is not None and python != facts.this_python():
        from launcher.backends.ssh import requirements

        brings_its_own = job.program or choose.in_container(job, "local")
        facts.check_python(python, () if brings_its_own else requirements.NEEDED)

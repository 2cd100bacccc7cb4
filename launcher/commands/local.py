"""`zlaunch local`: train on this machine."""

from __future__ import annotations

from typing import Any

import click

from launcher.backends import backend_of, target_of
from launcher.backends.local.devices import refuse_procs_on_gpus
from launcher.commands.help_groups import LaunchCommand
from launcher.commands.options import (
    Flag,
    add_flags,
    job_options,
    launch_options,
    load_job,
    run_options,
    start_run_or_sweep,
    sweep_option,
    take_flags,
)
from launcher.job.spec import Job
from launcher.lifecycle import checks
from launcher.lifecycle.attach import launch
from launcher.lifecycle.sweep import IsCancelled
from launcher.rundir.directory import RunDir

LOCAL_FLAGS = (
    Flag("--gpus", "local.gpus", "GPUs to use, one rank per GPU (default: all).", "Local", int),
    Flag("--procs", "local.procs", "CPU ranks, with --device cpu (default: 1).", "Local", int),
    Flag("--python", "local.python", "Python of the training environment.", "Local"),
)


@click.command(cls=LaunchCommand)
@job_options
@add_flags(LOCAL_FLAGS)
@sweep_option("one after another")
@run_options
@click.pass_context
def local(ctx: click.Context, /, **_: Any) -> int:
    """Train on this machine: on its GPUs, or on the CPU.

    JOB is a job file. The default is job.yaml in the working directory. Without one, flags about model, data and
    training make a job of their own; without such flags the demo of zlaunch runs. To run a program of your own
    instead, put it after `--`.
    """
    flags = take_flags(LOCAL_FLAGS, ctx)

    def load(values: dict[str, Any]) -> Job:
        return load_job(ctx, {**flags, **values})

    def start(loaded: Job, run: RunDir | None = None, is_cancelled: IsCancelled | None = None) -> int:
        target = target_of("local", loaded.spec)
        refuse_procs_on_gpus(flags["local.procs"], target)
        checks.check_program(loaded.spec, "local")
        if not ctx.params["dry_run"]:
            checks.check_python(loaded.spec)
        backend = backend_of("local")
        return launch(loaded, target, backend, run=run, is_cancelled=is_cancelled, **launch_options(ctx))

    return start_run_or_sweep(ctx, load, start, backend="local")

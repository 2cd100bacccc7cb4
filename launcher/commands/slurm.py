"""`zlaunch slurm`: train on a Slurm cluster."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from launcher.backends import target_of
from launcher.backends.slurm.jobs import SlurmBackend
from launcher.commands import ignored
from launcher.commands.help_groups import LaunchCommand
from launcher.commands.options import (
    Flag,
    add_flags,
    job_options,
    load_job,
    run_options,
    sweep_option,
    switch,
    take_flags,
    texts,
)
from launcher.errors import SpecError, UsageError
from launcher.job.spec import Job
from launcher.lifecycle import checks, submit, sweep_array
from launcher.lifecycle.attach import finish_interrupted_start, print_notes, print_rendered, start_and_follow
from launcher.lifecycle.interrupted import StartInterrupted
from launcher.plan import agent_plan, batch_job
from launcher.rundir.directory import RunDir
from launcher.rundir.find import RENDERED


def _flag(names: str, field: str, text: str, kind: Any = None, metavar: str | None = None) -> Flag:
    return Flag(names, f"slurm.{field}", text, "Slurm", kind, metavar)


def _count(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


SLURM_FLAGS = (
    _flag("--nodes -N", "nodes", "Nodes (default: 1).", int),
    _flag(
        "--gpus-per-node",
        "gpus_per_node",
        "Ranks per node, one per GPU (default: 8); with a type of the site's GRES: h200:8.",
        _count,
        "[TYPE:]N",
    ),
    _flag("--procs-per-node", "procs_per_node", "Ranks per node with --device cpu (default: 1).", int),
    _flag("--gpu", "gpu", "GPU of the nodes, such as h100 or 24GiB (default: what Slurm reports of the partition)."),
    _flag(
        "--cpus-per-task",
        "cpus_per_task",
        "CPUs per node, for all its ranks together (default: the share that goes with the GPUs).",
        int,
    ),
    _flag("--mem", "mem", "Memory per node as sbatch takes it, such as 64G; 0 requests all of it."),
    _flag("--cluster -M", "cluster", "Another cluster of this site, or several from which sbatch chooses."),
    _flag("--partition -p", "partition", "Partition to submit to."),
    _flag("--account -A", "account", "Account to charge."),
    _flag("--qos -q", "qos", "Quality of service."),
    _flag("--time -t", "time", "Time limit of one start; a longer training is requeued."),
    _flag("--constraint -C", "constraint", "Features that the nodes must have."),
    _flag("--reservation", "reservation", "Reservation to run in."),
    _flag("--nodelist -w", "nodelist", "Nodes that the job must include."),
    _flag("--exclude -x", "exclude", "Nodes to leave out."),
    _flag("--array-limit --array", "array_limit", "Points of a sweep that run at the same time.", int),
    _flag("--signal-before", "signal_before", "Seconds before the time limit to save the last checkpoint.", int),
    _flag(
        "--max-requeues",
        "max_requeues",
        "Maximum number of requeues (default: 20; max_restarts takes precedence).",
        int,
    ),
    _flag("--template", "template", "Your own batch script; see `zlaunch templates`."),
    _flag("--login", "login", "Submit over SSH, from a machine without Slurm.", metavar="USER@HOST"),
    _flag("--workdir", "workdir", "Working directory on the login host (default: ~/zlaunch)."),
    _flag("--python", "python", "Python of the training environment on the nodes."),
)


@click.command(cls=LaunchCommand)
@job_options
@add_flags(SLURM_FLAGS)
@texts("--sbatch", "further", "KEY[=VALUE]", "Slurm", "Any other option of sbatch.")
@sweep_option("as one array job")
@switch("--print-script", "Start", "Write the run directory, print the batch script and stop.")
@switch("--wait", "Start", "Follow the job until it ends. Ctrl-C cancels a single run; a sweep continues.")
@run_options
@click.pass_context
def slurm(
    ctx: click.Context,
    /,
    overrides: tuple[str, ...],
    smoke: bool,
    further: tuple[str, ...],
    sweeps: tuple[str, ...],
    print_script: bool,
    wait: bool,
    dry_run: bool,
    detach: bool,
    as_json: bool,
    **_: Any,
) -> int:
    """Train on a Slurm cluster: one batch job with one task per node.

    Prints the job id and returns. --wait follows the job until it ends, and so does --smoke. JOB and `-- PROGRAM
    ARGS...` are as for `zlaunch local`.
    """
    flags = take_flags(SLURM_FLAGS, ctx)
    if further:
        flags["slurm.sbatch"] = sbatch_options(further)

    def load(values: dict[str, Any]) -> Job:
        loaded = load_job(ctx, {**flags, **values})
        rules = ignored.SLURM if sweeps else ignored.SLURM + ignored.SLURM_SINGLE
        ignored.refuse_ignored(loaded.spec, rules, flags, overrides)
        if loaded.spec.slurm.login is None:
            checks.check_program(loaded.spec, "slurm")
        return loaded

    show = dry_run or print_script
    if wait and detach:
        raise UsageError(
            "--wait and --detach contradict each other",
            hint="without --wait, the command returns at once",
            code="ZL-OPT-01",
        )
    follow = (wait or smoke) and not detach
    if sweeps:
        quiet = as_json and not print_script
        how = {"dry_run": show, "quiet": quiet, "follow": follow, "as_json": as_json}
        return sweep_array.submit_sweep(sweeps, load, overrides, **how)
    return submit_run(load({}), smoke=smoke, dry_run=show, print_script=print_script, follow=follow, as_json=as_json)


def submit_run(job: Job, *, smoke: bool, dry_run: bool, print_script: bool, follow: bool, as_json: bool) -> int:
    """Submit a single run and follow it if loaded, or only show its script."""
    secrets = {} if dry_run else checks.read_secrets(job)
    backend = SlurmBackend(announce=follow)
    run, plan = submit.prepare(job, target_of("slurm", job.spec))
    print_notes(plan)
    if dry_run:
        if print_script or not as_json:
            click.echo(run.sbatch.read_text(encoding="utf-8"), nl=False)
        if as_json:
            return print_rendered(run, plan, as_json)
        for line in agent_plan.reporting_lines(plan.launch.trackers, plan.launch.notify):
            click.echo(line, err=True)
        run.event(RENDERED)
        click.echo(f"rendered {run.path}, the working directory of the script; nothing was submitted", err=True)
        return 0
    if not follow:
        try:
            record = submit.submit(run, plan, backend, secrets)
        except StartInterrupted as start:
            return finish_interrupted_start(run, start, as_json)
        print_submitted(run, next(iter(record.ids), "without a known id"), as_json)
        return 0
    return start_and_follow(run, plan, backend, secrets, smoke=smoke, as_json=as_json)


def print_submitted(run: RunDir, job: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"run": run.run_id, "job": job, "state": "PENDING", "directory": str(run.path)}))
        return
    commands = ("watch", "status", "logs -f")
    click.echo("\n".join([f"job {job}: {run.run_id}", *(f"  zlaunch {command} {run.run_id}" for command in commands)]))
    sys.stdout.flush()


def sbatch_options(texts: tuple[str, ...]) -> dict[str, str | None]:
    """`comment=a b` and `exclusive` -> {"comment": "a b", "exclusive": None}. Raises SpecError."""
    found: dict[str, str | None] = {}
    for text in texts:
        name, equals, value = text.lstrip("-").partition("=")
        if not name:
            raise SpecError(
                f"--sbatch {text!r}: expected key=value or key",
                hint="for example --sbatch mail-type=END",
                code="ZL-SLURM-04",
            )
        found[name] = value if equals else None
    batch_job.check_sbatch(found)
    return found

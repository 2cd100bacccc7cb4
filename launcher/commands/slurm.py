"""`zlaunch slurm`: train on a Slurm cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from launcher.backends import target_of
from launcher.backends.slurm.jobs import SlurmBackend
from launcher.commands.options import (
    Idle,
    LaunchCommand,
    job_options,
    load_job,
    refuse_absent_script,
    refuse_idle,
    run_options,
)
from launcher.errors import SpecError, UsageError
from launcher.job.spec import Job
from launcher.lifecycle import checks, submit, sweep_array
from launcher.lifecycle.attach import say_rendered, start_and_follow
from launcher.plan import batch_job
from launcher.rundir.directory import RunDir

SLURM_FLAGS: tuple[tuple[tuple[str, ...], str, dict[str, Any]], ...] = (
    (("--nodes", "-N"), "nodes", {"type": int, "help": "Nodes (default 1)."}),
    (("--gpus-per-node",), "gpus_per_node", {"type": int, "help": "Ranks a node, one a GPU (default 8)."}),
    (("--procs-per-node",), "procs_per_node", {"type": int, "help": "Ranks a node with --device cpu (default 1)."}),
    (("--gpu",), "gpu", {"help": "GPU of the nodes, h100 or 24GiB: plans for it, and refuses a job that cannot fit."}),
    (("--cpus-per-task",), "cpus_per_task", {"type": int, "help": "Processors of a node's ranks together."}),
    (("--partition", "-p"), "partition", {"help": "Partition to queue in."}),
    (("--account", "-A"), "account", {"help": "Account that is charged."}),
    (("--qos", "-q"), "qos", {"help": "Quality of service."}),
    (("--time", "-t"), "time", {"help": "Time limit of one start; a longer training queues itself again."}),
    (("--constraint", "-C"), "constraint", {"help": "Features that the nodes must have."}),
    (("--reservation",), "reservation", {"help": "Reservation to run in."}),
    (("--nodelist", "-w"), "nodelist", {"help": "Nodes that must be among them."}),
    (("--exclude", "-x"), "exclude", {"help": "Nodes to leave out."}),
    (("--mem",), "mem", {"help": "Memory a node, as sbatch takes it: 64G; 0 for all of it."}),
    (("--array-limit", "--array"), "array_limit", {"type": int, "help": "Points of a sweep that run at once."}),
    (("--signal-before",), "signal_before", {"type": int, "help": "Seconds before the limit for the last checkpoint."}),
    (("--max-requeues",), "max_requeues", {"type": int, "help": "Requeues at most (default 20; max_restarts wins)."}),
    (("--template",), "template", {"help": "Batch script of your own; see `zlaunch templates`."}),
    (("--login",), "login", {"metavar": "USER@HOST", "help": "Submit over SSH, from a machine without Slurm."}),
    (("--workdir",), "workdir", {"help": "Directory on the login host (default ~/zlaunch)."}),
    (("--python",), "python", {"help": "Interpreter of the training environment on the nodes."}),
)
"""(flags, field of SlurmSpec, click's settings)."""


IDLE = (
    Idle(
        ("slurm.procs_per_node",),
        lambda job: job.device != "cpu",
        "it counts ranks on a CPU",
        "say --gpus-per-node N, or --device cpu",
    ),
    Idle(
        ("slurm.gpus_per_node",),
        lambda job: job.device == "cpu",
        "the run is on CPUs",
        "say --procs-per-node N, or --device cuda",
    ),
    Idle(
        ("slurm.gpu",),
        lambda job: job.device == "cpu" or bool(job.program),
        "it says for which GPU a training is planned",
        "leave it out",
    ),
    Idle(
        ("slurm.workdir",),
        lambda job: job.slurm.login is None,
        "without a login host the run directory lies here",
        "say --login USER@HOST, or where runs lie: ZLAUNCH_RUNS=/shared/runs",
    ),
)
IDLE_ALONE = (
    Idle(("slurm.array_limit",), lambda job: True, "one run is no array", "it bounds the points of a --sweep"),
)


def slurm_options(function: Any) -> Any:
    for flags, field, settings in reversed(SLURM_FLAGS):
        function = click.option(*flags, f"slurm__{field}", default=None, **settings)(function)
    return function


@click.command(cls=LaunchCommand)
@job_options
@slurm_options
@click.option("--sbatch", "further", multiple=True, metavar="KEY[=VALUE]", help="Any further option of sbatch.")
@click.option(
    "--sweep", "sweeps", multiple=True, metavar="KEY=A,B,C", help="One run for each combination, as one array."
)
@click.option("--print-script", is_flag=True, help="Write the run directory, print the batch script and stop.")
@click.option("--wait", is_flag=True, help="Follow the job to its end; Ctrl-C ends it (a sweep goes on).")
@run_options
@click.pass_context
def slurm(
    ctx: click.Context,
    /,
    job: Path | None,
    overrides: tuple[str, ...],
    smoke: bool,
    further: tuple[str, ...],
    sweeps: tuple[str, ...],
    print_script: bool,
    wait: bool,
    dry_run: bool,
    detach: bool,
    as_json: bool,
    **parameters: Any,
) -> int:
    """Train on a Slurm cluster: one batch job, one task a node.

    Returns the job's id at once; --wait follows it (as --smoke does, which must see the end).
    JOB and `-- PROGRAM ARGS...` as for `zlaunch local`.
    """
    flags = {f"slurm.{field}": parameters.pop(f"slurm__{field}") for _, field, _ in SLURM_FLAGS}
    if further:
        flags["slurm.sbatch"] = sbatch_options(further)

    def load(values: dict[str, Any]) -> Job:
        asked = load_job(ctx, job, overrides, smoke, parameters, {**flags, **values})
        refuse_idle(asked.spec, IDLE if sweeps else IDLE + IDLE_ALONE, flags, overrides)
        if asked.spec.slurm.login is None:
            refuse_absent_script(asked.spec, "slurm")
        return asked

    show = dry_run or print_script
    if wait and detach:
        raise UsageError("--wait and --detach contradict each other", hint="a job runs on alone unless --wait is given")
    follow = (wait or smoke) and not detach
    if sweeps:
        quiet = as_json and not print_script
        return sweep_array.on_slurm(sweeps, load, overrides, show=show, quiet=quiet, follow=follow, as_json=as_json)
    return one(load({}), smoke=smoke, show=show, quiet=print_script, follow=follow, as_json=as_json)


def one(job: Job, *, smoke: bool, show: bool, quiet: bool, follow: bool, as_json: bool) -> int:
    """A single run: its script shown, or its job queued, and followed if asked."""
    secrets = {} if show else checks.read_secrets(job.spec.secrets)
    backend = SlurmBackend(announce=follow)
    run, plan = submit.prepare(job, target_of("slurm", job.spec))
    if plan.train is not None and plan.launch.device == "cuda" and job.spec.slurm.gpu is None:
        click.echo("whether it fits the nodes' GPUs was not asked: --gpu h100 plans the job for them", err=True)
    if show:
        if quiet or not as_json:
            click.echo(run.sbatch.read_text(encoding="utf-8"), nl=False)
        if as_json:
            return say_rendered(run, plan, as_json)
        click.echo(f"rendered {run.path}, where the script runs; nothing was queued", err=True)
        return 0
    if not follow:
        record = submit.submit(run, plan, backend, secrets)
        say_queued(run, record.ids[0], as_json)
        return 0
    return start_and_follow(run, plan, backend, secrets, smoke=smoke, as_json=as_json)


def say_queued(run: RunDir, job: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"run": run.run_id, "job": job, "state": "PENDING", "directory": str(run.path)}))
        return
    click.echo(f"job {job}: {run.run_id}\n  zlaunch status {run.run_id}\n  zlaunch logs -f {run.run_id}")
    sys.stdout.flush()


def sbatch_options(texts: tuple[str, ...]) -> dict[str, str | None]:
    """`comment=a b` and `exclusive` -> {"comment": "a b", "exclusive": None}. Raises SpecError."""
    found: dict[str, str | None] = {}
    for text in texts:
        name, equals, value = text.lstrip("-").partition("=")
        if not name:
            raise SpecError(f"--sbatch {text!r}: expected key=value or key", hint="for example --sbatch mail-type=END")
        found[name] = value if equals else None
    batch_job.check_sbatch(found)
    return found

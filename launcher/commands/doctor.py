"""`zlaunch doctor`: check this machine, hosts or a cluster before a run."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from launcher.backends.checklist import Cell, Row, fit_columns
from launcher.commands.help_groups import GroupedCommand
from launcher.commands.local import LOCAL_FLAGS
from launcher.commands.options import add_flags, load_job, some_job_options, take_flags
from launcher.commands.slurm import SLURM_FLAGS
from launcher.commands.ssh import host_flags, host_options, hosts_of_flags
from launcher.machine.language.spoken import padded, said

COLORS = {"ok": "green", "warn": "yellow", "bad": "red"}
JOB_KEYS = ("device", "model.path", "train.zero_stage", "container.runtime", "container.image")
HERE_FLAGS = [flag for flag in LOCAL_FLAGS if flag.key != "local.procs"]
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool) -> int:
    """Check whether everything is ready for a run: on this machine, on hosts (ssh) or on a cluster (slurm)."""
    if ctx.invoked_subcommand is None:
        return int(ctx.invoke(doctor_local, job=None, smoke=False, overrides=(), as_json=as_json))
    return 0


@doctor.command("local", cls=GroupedCommand)
@some_job_options(*JOB_KEYS)
@add_flags(HERE_FLAGS)
@json_option
@click.pass_context
def doctor_local(ctx: click.Context, /, as_json: bool, **_: Any) -> int:
    """Check this machine for JOB: GPUs, driver and CUDA against torch, and more. Exits with 1 if it is not ready."""
    from launcher.backends.local.doctor_checks import examine

    job = load_job(ctx, take_flags(HERE_FLAGS, ctx))
    return show([examine(job.spec)], as_json)


@doctor.command("ssh", cls=GroupedCommand)
@some_job_options(*JOB_KEYS, "data.train", "data.eval")
@host_options
@json_option
@click.pass_context
def doctor_ssh(ctx: click.Context, /, as_json: bool, **_: Any) -> int:
    """Check all hosts of JOB at once: one row per host, with advice per problem. Exits with 1 if one is not ready."""
    from launcher.backends.ssh.preflight import examine
    from launcher.job import inputs

    flags = host_flags(ctx)
    loaded = hosts_of_flags(load_job(ctx, flags), flags)
    return show(examine(loaded.spec, inputs.inputs(loaded.spec)[0]), as_json)


@doctor.command("slurm", cls=GroupedCommand)
@some_job_options(*JOB_KEYS)
@add_flags(SLURM_FLAGS)
@click.option("--wait", default=30, show_default=True, help="Seconds to wait for free nodes; 0 looks at no node.")
@json_option
@click.pass_context
def doctor_slurm(ctx: click.Context, /, wait: int, as_json: bool, **_: Any) -> int:
    """Check the cluster for JOB: what Slurm says of it, and its nodes by a short step. Exits with 1 if not ready."""
    from launcher.backends.slurm.cluster_checks import examine
    from launcher.backends.slurm.jobs import SlurmBackend

    job = load_job(ctx, take_flags(SLURM_FLAGS, ctx)).spec
    return show(examine(job, SlurmBackend().shell_for(job), wait), as_json)


@doctor.command("net", cls=GroupedCommand)
@some_job_options("device")
@host_options
@json_option
@click.pass_context
def doctor_net(ctx: click.Context, /, as_json: bool, **_: Any) -> int:
    """Measure the network between the hosts of JOB, or between the nodes of the Slurm allocation that this runs in.

    The ranks use what a training would use, NCCL on GPUs and gloo on CPUs: latency, the rate of an all-reduce, the
    interface that moved the bytes, and with three hosts or more the rate of each pair, which names a slow host. Later
    plans for these hosts reckon with the measured rate.
    """
    from launcher.lifecycle import net_check
    from launcher.machine import measured_networks

    flags = host_flags(ctx)
    ctx.meta["zlaunch.demo_told"] = True  # nothing is trained
    job = hosts_of_flags(load_job(ctx, flags), flags)
    if job.spec.ssh.hosts or job.spec.ssh.hostfile:
        measured = net_check.measure_hosts(job)
    else:
        python = flags["ssh.python"] or sys.executable
        measured = net_check.measure_allocation(python, "cpu" if job.spec.device == "cpu" else "cuda")
        measured_networks.remember(measured_networks.of_partition(os.environ.get("SLURM_JOB_PARTITION")), measured.rate)
    measured_networks.remember(measured.hosts, measured.rate)
    if as_json:
        told = {**measured.found, "places": measured.found["hosts"], "hosts": measured.hosts}
        click.echo(json.dumps({**told, "bytes_per_second": measured.rate}))
        return 0
    return show(net_check.rows_of(measured), as_json)


def show(rows: Sequence[Row], as_json: bool) -> int:
    """Print the rows; return the exit code."""
    if as_json:
        for row in rows:
            cells = {name: dataclasses.asdict(cell) for name, cell in row.cells.items()}
            click.echo(json.dumps({"host": row.host, "blocks": row.blocks, **cells}))
    else:
        print_rows(rows)
    return 1 if any(row.blocks for row in rows) else 0


def print_rows(rows: Sequence[Row]) -> None:
    """Print what was found, in tables that fit the terminal or as a list, and below it the advice."""
    from rich.markup import escape
    from rich.table import Table

    from launcher.show.terminal import Console

    console = Console()
    # A row with other checks, such as the cluster's, is no row of the hosts' table; a host out of reach has few cells.
    columns_of_all = max((row.cells for row in rows), key=len)
    tabled = [row for row in rows if row.cells.keys() <= columns_of_all.keys()]
    tabled = tabled if len(tabled) > 1 else []
    for row in rows:
        if row not in tabled:
            console.print(f"[bold]{escape(row.host)}[/]", highlight=False)
            for name, cell in row.cells.items():
                console.print(f"  {padded(said(name), 12)} {_styled(cell)}", highlight=False, soft_wrap=True)
    for columns in fit_columns(tabled, list(columns_of_all), console.width) if tabled else ():
        table = Table()
        for column in ("host", *columns):
            table.add_column(column, overflow="fold")
        for row in tabled:
            table.add_row(
                escape(row.host), *(_styled(row.cells[column]) if column in row.cells else "" for column in columns)
            )
        console.print(table)
    for row in rows:
        for name, cell in row.cells.items():
            if cell.level != "ok":
                style = COLORS[cell.level]
                console.print(
                    f"[{style}]{escape(row.host)}: {name}: {escape(cell.advice)}[/]", soft_wrap=not console.is_terminal
                )


def _styled(cell: Cell) -> str:
    from rich.markup import escape

    return f"[{COLORS[cell.level]}]{escape(cell.text)}[/]"

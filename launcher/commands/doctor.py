"""`zlaunch doctor ssh`: check hosts before a run."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from launcher.commands.help_groups import GroupedCommand
from launcher.commands.options import load_job, some_job_options
from launcher.commands.ssh import host_flags, host_options, hosts_of_flags


@click.group()
def doctor() -> None:
    """Check whether everything is ready for a run."""


@doctor.command("ssh", cls=GroupedCommand)
@some_job_options(
    "device", "model.path", "data.train", "data.eval", "train.zero_stage", "container.runtime", "container.image"
)
@host_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per host.")
@click.pass_context
def doctor_ssh(ctx: click.Context, /, as_json: bool, **_: Any) -> int:
    """Check all hosts of JOB at once: one row per host, with advice per problem. Exits with 1 if one is not ready."""
    from launcher.backends.ssh.preflight import examine
    from launcher.job import inputs

    flags = host_flags(ctx)
    loaded = hosts_of_flags(load_job(ctx, flags), flags)
    table = examine(loaded.spec, inputs.inputs(loaded.spec)[0])
    if as_json:
        for row in table:
            cells = {name: dataclasses.asdict(cell) for name, cell in row.cells.items()}
            click.echo(json.dumps({"host": row.host, "blocks": row.blocks, **cells}))
    else:
        print_table(table)
    return 1 if any(row.blocks for row in table) else 0


def print_table(rows: Any) -> None:
    """Print the table, and below it the advice per host."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from launcher.backends.ssh.preflight_table import COLUMNS

    colour = {"ok": "green", "warn": "yellow", "bad": "red"}
    table = Table()
    for column in ("host", *COLUMNS):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = [row.cells.get(column) for column in COLUMNS]
        table.add_row(
            escape(row.host), *(f"[{colour[cell.level]}]{escape(cell.text)}[/]" if cell else "" for cell in cells)
        )
    console = Console(width=None if Console().is_terminal else 180)
    console.print(table)
    for row in rows:
        for name, cell in row.cells.items():
            if cell.level != "ok":
                style = colour[cell.level]
                console.print(f"[{style}]{escape(row.host)}: {name}: {escape(cell.advice)}[/]", soft_wrap=True)

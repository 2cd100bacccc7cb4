"""`zlaunch doctor ssh`: is everything ready for a run?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from launcher.commands.help_groups import GroupedCommand
from launcher.commands.options import load_job, some_job_options
from launcher.commands.ssh import host_flags, host_options, hosts_of_flags


@click.group()
def doctor() -> None:
    """Look for what would stop a run, before there is one."""


@doctor.command("ssh", cls=GroupedCommand)
@some_job_options(
    "device", "model.path", "data.train", "data.eval", "train.zero_stage", "container.runtime", "container.image"
)
@host_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a host.")
@click.pass_context
def doctor_ssh(
    ctx: click.Context, /, job: Path | None, overrides: tuple[str, ...], smoke: bool, as_json: bool, **parameters: Any
) -> int:
    """Check the hosts of JOB, all at once: a row for each, with what to do about red cells. Exit 1 if one blocks."""
    from launcher.backends.ssh.preflight import examine
    from launcher.job import inputs

    flags = host_flags(parameters)
    asked = hosts_of_flags(load_job(ctx, job, overrides, smoke, parameters, flags), flags)
    table = examine(asked.spec, inputs.inputs(asked.spec)[0])
    if as_json:
        for row in table:
            cells = {name: dataclasses.asdict(cell) for name, cell in row.cells.items()}
            click.echo(json.dumps({"host": row.host, "blocks": row.blocks, **cells}))
    else:
        show(table)
    return 1 if any(row.blocks for row in table) else 0


def show(rows: Any) -> None:
    """The table, and below it what to do, host by host."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from launcher.backends.ssh.preflight import COLUMNS

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

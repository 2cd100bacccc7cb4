"""`zlaunch pull RUN`: bring home what a run on hosts, or on a cluster behind a login host, made."""

from __future__ import annotations

import click

from launcher import runs
from launcher.backends import backend_of


@click.command()
@click.argument("run")
@click.option("--checkpoints", is_flag=True, help="The checkpoints too.")
def pull(run: str, checkpoints: bool) -> None:
    """Bring RUN's logs, metrics, result and adapter into its run directory here."""
    found = runs.find_run(run, runs.runs_root())
    fetch = getattr(backend_of(found.record.backend), "pull", None)
    names = fetch(found, checkpoints=checkpoints) if fetch is not None else None
    if names is None:
        click.echo(f"{found.path}: the files of a {found.record.backend} run are here already")
        return
    for name in names:
        click.echo(f"{found.path / name}")

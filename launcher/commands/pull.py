"""`zlaunch pull RUN`: copy the results of a run on other machines here."""

from __future__ import annotations

import json

import click

from launcher.backends import backend_of_run
from launcher.backends.base import Pulls
from launcher.commands.run_argument import find_run


@click.command()
@click.argument("run")
@click.option("--checkpoints", is_flag=True, help="Copy the checkpoints too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(run: str, checkpoints: bool, as_json: bool) -> None:
    """Copy RUN's logs, metrics, result and adapter into its run directory here."""
    found = find_run(run)
    backend = backend_of_run(found)
    names = None
    if isinstance(backend, Pulls):
        found.claim_pull()
        try:
            names = backend.pull(found, checkpoints=checkpoints)
        finally:
            found.release()
    if as_json:
        click.echo(json.dumps({"run": found.run_id, "directory": str(found.path), "files": names or []}))
        return
    if names is None:
        click.echo(f"{found.path}: all files of this {found.record.backend} run are already here")
        return
    for name in names:
        click.echo(f"{found.path / name}")

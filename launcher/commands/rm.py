"""`zlaunch rm RUN|SWEEP...`: remove runs that are over, with their files on hosts and login hosts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack

import click

from launcher.backends.base import Copy
from launcher.errors import UsageError
from launcher.lifecycle import removal


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN|SWEEP...")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--local", is_flag=True, help="Remove only the files on this machine, and ask no other one.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rm(runs: tuple[str, ...], dry_run: bool, local: bool, yes: bool, as_json: bool) -> None:
    """Remove runs that are over, and whole sweeps: their directories here, and their files on hosts and login hosts.

    A run of which anything lives is refused, and one whose hosts do not answer. After an interruption the same command
    removes the rest.
    """
    with ExitStack() as stack:
        found = removal.find_removals(runs, stack, local=local)
        places = [copy for one in found for copy in one.places]
        if not as_json:
            for one in found:
                print_removal(one)
            click.echo(f"{total(places)} in all")
        if not dry_run:
            confirm(f"Remove {len(found)} {'run or sweep' if len(found) == 1 else 'runs and sweeps'}?", yes)
            places = [copy for one in found for copy in removal.remove(one)]
        if as_json:
            rows = [{"host": copy.host, "path": copy.path, "bytes": copy.bytes} for copy in places]
            click.echo(json.dumps({"removed": not dry_run, "bytes": sum(copy.bytes for copy in places),
                                   "places": rows}, ensure_ascii=False))  # fmt: skip
        elif not dry_run:
            click.echo(f"removed: {total(places)} freed")


def print_removal(one: removal.Removal) -> None:
    click.echo(f"{one.name}  {one.state}")
    for copy in one.places:
        click.echo(f"  {copy.bytes:>16,} bytes  {copy.host}  {copy.path}")


def total(places: Iterable[Copy]) -> str:
    return f"{sum(copy.bytes for copy in places):,} bytes"


def confirm(question: str, yes: bool) -> None:
    """Ask, unless the user has answered already. A no ends the command. Raises UsageError if nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "nobody can be asked here", hint="--dry-run says what would be removed, --yes removes it", code="ZL-OPT-01"
        )
    if not click.confirm(question, err=True):
        click.echo("nothing was removed", err=True)
        raise click.exceptions.Exit(1)

"""`zlaunch clean`: remove dry runs, interrupted removals, old checkpoints and caches."""

from __future__ import annotations

import json
from contextlib import ExitStack

import click

from launcher.commands.rm import confirm
from launcher.lifecycle import cleaning
from launcher.lifecycle.cleaning import Kept, Waste


@click.command()
@click.option(
    "--keep-last", type=click.IntRange(min=1), metavar="N",
    help="Of every run that is over, keep the N newest checkpoints and the best one, and remove the others.",
)  # fmt: skip
@click.option("--caches", is_flag=True, help="Remove the bytecode of libraries, and cached tokens not used for a day.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def clean(keep_last: int | None, caches: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove what is of no more use on this machine: dry runs, and what an interrupted removal has left.

    With --keep-last also old checkpoints, and with --caches tokens of data sets and bytecode.
    What may be of a living run stays.
    """
    with ExitStack() as stack:
        found = [*cleaning.dry_runs(stack), *cleaning.interrupted_removals()]
        found += cleaning.old_checkpoints(keep_last, stack) if keep_last else []
        found += cleaning.caches() if caches else []
        waste = [one for one in found if isinstance(one, Waste)]
        kept = [one for one in found if isinstance(one, Kept)]
        total = sum(one.bytes for one in waste)
        if not as_json:
            for one in waste:
                click.echo(f"{one.bytes:>16,} bytes  {one.kind:<19}  {one.path}")
            for stays in kept:
                click.echo(f"kept: {stays.name}: {stays.reason}", err=True)
            click.echo(f"{total:,} bytes in {len(waste)} directories")
        if waste and not dry_run:
            confirm(f"Remove these {len(waste)} directories?", yes)
            total = sum(cleaning.remove(one) for one in waste)
        if as_json:
            rows = [{"kind": one.kind, "path": str(one.path), "bytes": one.bytes} for one in waste]
            stayed = [{"name": one.name, "reason": one.reason} for one in kept]
            click.echo(json.dumps({"removed": not dry_run, "bytes": total, "directories": rows, "kept": stayed},
                                  ensure_ascii=False))  # fmt: skip
        elif waste and not dry_run:
            click.echo(f"removed: {total:,} bytes freed")

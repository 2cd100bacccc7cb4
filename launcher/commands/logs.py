"""`zlaunch logs RUN`: what the ranks printed."""

from __future__ import annotations

import sys

import click

from launcher.backends import backend_of_run
from launcher.commands.run_argument import find_run
from launcher.errors import UsageError
from launcher.rundir.directory import RunDir


@click.command()
@click.argument("run")
@click.option("--rank", type=click.IntRange(min=0), help="Print the lines of this rank only.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N lines of each log.")
@click.option("-f", "--follow", is_flag=True, help="Print new lines until the run ends.")
def logs(run: str, rank: int | None, tail: int | None, follow: bool) -> None:
    """Print the logs of RUN's ranks, each line with its rank in front."""
    found = find_run(run)
    if rank is not None:
        check_rank(found, rank)
    try:
        for block in backend_of_run(found).logs(found, rank=rank, follow=follow, tail=tail):
            source = f"[{block.rank}] " if block.rank is not None else f"[node {block.node_rank}] "
            sys.stdout.write(block.prefixed(source if rank is None else ""))
            if follow:
                sys.stdout.flush()
    except KeyboardInterrupt:  # ends the command, not the run
        return


def check_rank(run: RunDir, rank: int) -> None:
    """Raise UsageError if no start of the run had this rank."""
    nodes = run.read_plan().get("launch", {}).get("nodes", ())
    ranks = {node["first_rank"] + local for node in nodes for local in range(node["procs"])}
    logs = run.logs_dir.glob("node-*/rank-*.log")  # an earlier start may have had more ranks
    ranks.update(int(name) for log in logs if (name := log.stem.removeprefix("rank-")).isdecimal())
    if ranks and rank not in ranks:
        known = f"ranks 0 to {max(ranks)}" if len(ranks) > 1 else "rank 0 only"
        raise UsageError(f"{run.run_id} has no rank {rank}; it has {known}", code="ZL-OPT-03")

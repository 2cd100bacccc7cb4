"""`zlaunch status RUN`: a run, its nodes and ranks, its progress, and why it failed."""

from __future__ import annotations

import contextlib
import json

import click
import msgspec

from launcher.backends import current_state
from launcher.commands.run_argument import find_run
from launcher.errors import TargetError
from launcher.rundir import jsonl, reading, summary
from launcher.rundir.directory import RunDir
from launcher.rundir.picture import Picture, Rank
from launcher.rundir.state import RunState


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(run: str, as_json: bool) -> None:
    """Show the state and progress of RUN."""
    found = find_run(run)
    state = current_state.current(found)
    if state.is_final and state is not RunState.SUCCEEDED and found.record.backend != "ssh":
        with contextlib.suppress(TargetError):  # Slurm is silent: the record is all that is known
            state = current_state.observed(found, state)
    from launcher.show.page import write

    write.write_if_new(found, state)  # a run that nobody followed to its end
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(reading.read(found, state))))
    else:
        print_status(found, reading.read(found, state))


def print_status(run: RunDir, picture: Picture) -> None:
    """Print the run, its nodes and ranks, its progress, its checkpoints, and its failure if it has one."""
    click.echo(f"{picture.run}: {picture.state} ({' '.join((str(picture.backend), *picture.ids))})")
    click.echo(f"  directory   {picture.directory}")
    for node in picture.nodes:
        click.echo(f"  node {node.node_rank}      {node.host} {node.state}: {', '.join(map(_rank, node.ranks))}")
    if picture.restarts:
        click.echo(f"  restarts    {picture.restarts}")
    if picture.loss is not None:
        rate = f", {picture.tokens_per_second:,.0f} tokens/s" if picture.tokens_per_second else ""
        click.echo(f"  progress    step {picture.step}, loss {picture.loss:.4f}{rate}")
    if picture.checkpoints:
        click.echo(f"  checkpoints {', '.join(f'step {step}' for step in picture.checkpoints)}")
    for path in (run.events, run.metrics):
        if damaged := jsonl.damaged_lines(path):
            click.echo(f"  damaged     {path.name}: {len(damaged)} cut off, the first is line {damaged[0]}")
    hang = summary.last_hang([event.fields for event in picture.events])
    if picture.failure is not None or hang:
        from rich.console import Console

        from launcher.show import final, stack_table

        if hang and (picture.failure or {}).get("cause") != "hang":
            click.echo(f"  hang        {hang.get('message')}")
            stack_table.print_stacks(hang.get("stacks") or (), Console())
        if picture.failure is not None:
            final.print_failure(run, Console())


def _rank(rank: Rank) -> str:
    if rank.signal:
        return f"rank {rank.rank} ended by signal {rank.signal}"
    return f"rank {rank.rank} pid {rank.pid}" if rank.exit_code is None else f"rank {rank.rank} exit {rank.exit_code}"

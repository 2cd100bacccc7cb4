"""`zlaunch status RUN`: a run, its nodes and ranks, its progress, and why it failed."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import click

from launcher.backends import current_state
from launcher.commands.run_argument import find_run
from launcher.errors import TargetError
from launcher.rundir import summary
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState, node_records


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(run: str, as_json: bool) -> None:
    """Show the state and progress of RUN."""
    found = find_run(run)
    state = current_state.current(found)
    if state.is_final and state is not RunState.SUCCEEDED and found.record.backend != "ssh":
        with contextlib.suppress(TargetError):  # Slurm is silent: the record is all that is known
            state = current_state.observed(found)
    if as_json:
        nodes = list(node_records(found).values())
        click.echo(json.dumps({**summary.summarize(found, state), "nodes": nodes, "last": summary.last_metric(found)}))
    else:
        print_status(found, state)


def print_status(run: RunDir, state: RunState) -> None:
    """Print the run, its nodes and ranks, its progress, its checkpoints, and its failure if it has one."""
    record, nodes = run.record, node_records(run).values()
    click.echo(f"{run.run_id}: {state.value} ({' '.join((record.backend, *record.ids))})")
    click.echo(f"  directory   {run.path}")
    for node in nodes:
        ranks = ", ".join(_rank(rank) for rank in node.get("ranks", []))
        click.echo(f"  node {node['node_rank']}      {node.get('host')} {node.get('state')}: {ranks}")
    if restarts := max((node.get("restarts") or 0 for node in nodes), default=0):
        click.echo(f"  restarts    {restarts}")
    if metric := summary.last_metric(run):
        rate = f", {metric['tokens_per_second']:,.0f} tokens/s" if metric.get("tokens_per_second") else ""
        click.echo(f"  progress    step {metric['step']}, loss {metric['loss']:.4f}{rate}")
    if steps := run.checkpoint_steps():
        click.echo(f"  checkpoints {', '.join(f'step {step}' for step in steps)}")
    if state in (RunState.FAILED, RunState.LOST):
        from rich.console import Console

        from launcher.show import final

        final.print_failure(run, Console())


def _rank(rank: dict[str, Any]) -> str:
    if rank.get("signal"):
        return f"rank {rank['rank']} ended by signal {rank['signal']}"
    if rank.get("exit_code") is not None:
        return f"rank {rank['rank']} exit {rank['exit_code']}"
    return f"rank {rank['rank']} pid {rank['pid']}"

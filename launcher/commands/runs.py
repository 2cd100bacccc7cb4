"""`zlaunch list | status | logs | cancel`: all of them read the run directory."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from launcher.backends import backend_of, current_state
from launcher.errors import RunNotFound, UsageError, ZlaunchError
from launcher.lifecycle.cancel import one, whole
from launcher.rundir import find, summary
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState

if TYPE_CHECKING:
    from launcher.lifecycle.cancel import Ended
    from launcher.lifecycle.sweep import Sweep


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_(as_json: bool) -> None:
    """List the runs under $ZLAUNCH_RUNS (default ./runs), oldest first.

    Of a run that cannot be asked now it has the state that was last seen, and why; a damaged one has no state.
    """
    found = [run for run in find.list_runs(find.runs_root()) if run.run_json.exists()]
    if not found and not as_json:
        click.echo(f"no runs in {find.runs_root()}", err=True)
    for run in found:
        try:
            row = overview(run)
        except ZlaunchError as error:  # its record is damaged: no reason to hide the others
            if as_json:
                row = {"run": run.run_id, "state": None, "error": str(error), "directory": str(run.path)}
                click.echo(json.dumps(row))
            else:
                click.echo(f"{run.run_id}: {error}", err=True)
            continue
        click.echo(json.dumps(row) if as_json else _line(row))


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(run: str, as_json: bool) -> None:
    """Show what RUN does or did."""
    found = run_named(run)
    now = current_state.current(found)
    if as_json:
        click.echo(json.dumps({**summary.of(found, now), "nodes": summary.nodes(found), "last": last_metric(found)}))
        return
    print_status(found, now)


@click.command()
@click.argument("run")
@click.option("--rank", type=click.IntRange(min=0), help="Only this rank's lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the run ends.")
def logs(run: str, rank: int | None, follow: bool) -> None:
    """Print the logs of RUN's ranks, each line behind its rank."""
    found = run_named(run)
    many = rank is None
    if rank is not None:
        refuse_absent_rank(found, rank)
    try:
        for line in backend_of(found.record.backend).logs(found, rank=rank, follow=follow):
            who = f"[{line.rank}] " if line.rank is not None else f"[node {line.node_rank}] "
            click.echo(f"{who if many else ''}{line.text}")
            if follow:
                sys.stdout.flush()
    except KeyboardInterrupt:  # the end of following, not of the run
        return


@click.command()
@click.argument("run")
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cancel(run: str, now: bool, as_json: bool) -> None:
    """End RUN: a last checkpoint, then every process of it, on every node.

    RUN may be a sweep: its points that are not over end, and none of them starts any more.
    """

    from launcher.lifecycle import sweep

    found = sweep.named(run)
    if isinstance(found, sweep.Sweep):
        say_ended(found, whole(found, checkpoint=not now), as_json)
        return
    ended = one(found, checkpoint=not now)
    click.echo(json.dumps(summary.of(found, RunState(ended.state))) if as_json else str(ended))


def say_ended(points: Sweep, ended: list[Ended], as_json: bool) -> None:
    """What became of each point of a cancelled sweep. Raises TargetError naming those that may run on."""
    from launcher.lifecycle.cancel import refuse_rest

    if as_json:
        rows = [{**point.as_dict(), "values": of.values} for point, of in zip(ended, points.points, strict=True)]
        click.echo(json.dumps({"sweep": points.sweep_id, "points": rows}, ensure_ascii=False))
    else:
        for point in ended:
            click.echo(str(point))
    refuse_rest(points, ended)


def run_named(text: str) -> RunDir:
    """The run that is meant, for commands that take no sweep. Raises RunNotFound, which says so of a sweep's name."""
    try:
        return find.find_run(text, find.runs_root())
    except RunNotFound as error:
        from launcher.lifecycle import sweep

        found = sweep.find(text)
        if found is None:
            raise
        hint = f"{found.sweep_id} is a sweep: zlaunch report {found.sweep_id} shows its runs"
        raise RunNotFound(str(error), hint=hint) from None


def refuse_absent_rank(run: RunDir, rank: int) -> None:
    """Raises UsageError for a rank that the run neither has nor had."""
    nodes = run.read_plan().get("launch", {}).get("nodes", ())
    ranks = {node["first_rank"] + local for node in nodes for local in range(node["procs"])}
    logs = run.logs_dir.glob("node-*/rank-*.log")  # an earlier start may have had more
    ranks.update(int(log.stem.removeprefix("rank-")) for log in logs)
    if ranks and rank not in ranks:
        known = f"ranks 0 to {max(ranks)}" if len(ranks) > 1 else "rank 0 only"
        raise UsageError(f"{run.run_id} has no rank {rank}; it has {known}")


def overview(run: RunDir) -> dict[str, Any]:
    """One row of `list`; of a run that cannot be asked now the last state that was seen, and why."""
    record = run.record
    last = last_metric(run) or {}
    now, error = current_state.last_seen(run)
    return {
        "run": run.run_id,
        "state": now.value,
        **({"error": error} if error else {}),
        "backend": record.backend,
        "created": record.created,
        "directory": str(run.path),
        "step": last.get("step"),
        "loss": last.get("loss"),
    }


def last_metric(run: RunDir) -> dict[str, Any] | None:
    found = [metric for metric in run.read_metrics() if "loss" in metric]
    return found[-1] if found else None


def _line(row: dict[str, Any]) -> str:
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created"]))
    loss = f"step {row['step']} loss {row['loss']:.4f}" if row["loss"] is not None else ""
    line = f"{row['state']:<10} {created}  {row['backend']:<6} {row['run']}  {loss}".rstrip()
    return f"{line}  (when last seen: {row['error'].splitlines()[0]})" if "error" in row else line


def print_status(run: RunDir, now: RunState) -> None:
    """The run, its nodes and ranks, its progress, its checkpoints, and why it failed if it did."""
    from rich.console import Console

    from launcher.show import final

    record = run.record
    click.echo(f"{run.run_id}: {now.value} ({' '.join((record.backend, *record.ids))})")
    click.echo(f"  directory   {run.path}")
    for node in summary.nodes(run):
        ranks = ", ".join(_rank(rank) for rank in node.get("ranks", []))
        click.echo(f"  node {node['node_rank']}      {node.get('host')} {node.get('state')}: {ranks}")
    if restarts := max((node.get("restarts") or 0 for node in summary.nodes(run)), default=0):
        click.echo(f"  restarts    {restarts}")
    if metric := last_metric(run):
        rate = f", {metric['tokens_per_second']:,.0f} tokens/s" if metric.get("tokens_per_second") else ""
        click.echo(f"  progress    step {metric['step']}, loss {metric['loss']:.4f}{rate}")
    if steps := run.checkpoint_steps():
        click.echo(f"  checkpoints {', '.join(f'step {step}' for step in steps)}")
    if now in (RunState.FAILED, RunState.LOST):
        final.print_failure(run, Console())


def _rank(rank: dict[str, Any]) -> str:
    if rank.get("signal"):
        return f"rank {rank['rank']} ended by signal {rank['signal']}"
    if rank.get("exit_code") is not None:
        return f"rank {rank['rank']} exit {rank['exit_code']}"
    return f"rank {rank['rank']} pid {rank['pid']}"

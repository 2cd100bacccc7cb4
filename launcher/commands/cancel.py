"""`zlaunch cancel RUN|SWEEP`: end a run or every run of a sweep."""

from __future__ import annotations

import json

import click

from launcher.lifecycle import sweep
from launcher.lifecycle.cancel import CancelResult, cancel_run, cancel_sweep, raise_failures
from launcher.lifecycle.sweep import Sweep
from launcher.rundir import reading
from launcher.rundir.state import RunState


@click.command()
@click.argument("run")
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cancel(run: str, now: bool, as_json: bool) -> None:
    """Save a last checkpoint of RUN, then end every process of it on every node.

    RUN may be a sweep: running points are cancelled, and waiting points do not start.
    """
    found = sweep.find_run_or_sweep(run)
    if isinstance(found, Sweep):
        print_results(found, cancel_sweep(found, checkpoint=not now), as_json)
        return
    result = cancel_run(found, checkpoint=not now)
    click.echo(json.dumps(reading.summarize(found, RunState(result.state))) if as_json else str(result))


def print_results(points: Sweep, results: list[CancelResult], as_json: bool) -> None:
    """Print the result of each point. Raises TargetError if some of them may still be running."""
    if as_json:
        rows = [
            {**result.as_dict(), "values": point.values} for result, point in zip(results, points.points, strict=True)
        ]
        click.echo(json.dumps({"sweep": points.sweep_id, "points": rows}, ensure_ascii=False))
    else:
        for result in results:
            click.echo(str(result))
    raise_failures(points, results)

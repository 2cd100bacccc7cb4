"""`zlaunch report`: runs side by side, with what differs between them and what came of it."""

from __future__ import annotations

import json
from typing import Any

import click

from launcher import follow, runs, summary, sweep
from launcher.runs import RunDir
from launcher.sweep import Point, Sweep

MEASURES = ("loss_first", "loss_last", "eval_loss", "accuracy_before", "accuracy_after", "seconds")
"""Columns taken from a run's results, where it has them."""


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="SWEEP|RUN...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def report(names: tuple[str, ...], as_json: bool) -> None:
    """Compare the points of a sweep, or any runs, in a table."""
    rows = [row(point) for name in names for point in points_of(name)]
    if as_json:
        for item in rows:
            click.echo(json.dumps(item, ensure_ascii=False))
        return
    click.echo(table(rows))


def points_of(name: str) -> list[Point]:
    found = sweep.find(name)
    if isinstance(found, Sweep):
        return list(found.points)
    run = runs.find_run(name, runs.runs_root())
    return [Point(run=run.run_id, values={})]


def row(point: Point) -> dict[str, Any]:
    """One run: its values in the sweep, its state, its measures."""
    run = sweep.run_of(point)
    state = sweep.state_of(run)
    measured = measures(run) if state is not None else {}
    return {"run": point.run, **point.values, "state": state.value if state else "not started", **measured}


def measures(run: RunDir) -> dict[str, Any]:
    result = run.read_json(run.result_json) or {}
    evaluation = result.get("evaluation") or {}
    found = {**evaluation, **result} if isinstance(evaluation, dict) else result
    losses = [metric["loss"] for metric in run.read_metrics() if "loss" in metric]
    started, ended = summary.span(run)
    found = {
        **({"loss_first": losses[0], "loss_last": losses[-1]} if losses else {}),
        "seconds": round(ended - started, 1) if started and ended else None,
        **{key: value for key, value in found.items() if value is not None},
    }
    chosen = {key: found[key] for key in MEASURES if isinstance(found.get(key), (int, float))}
    failure = follow.first_failure(run)
    return {**chosen, **({"failure": failure.get("message") or failure.get("cause")} if failure else {})}


def table(rows: list[dict[str, Any]]) -> str:
    """Plain text columns; a value that a run does not have is a dash."""
    columns = list(dict.fromkeys(key for item in rows for key in item if key != "failure"))
    if any("failure" in item for item in rows):
        columns.append("failure")
    cells = [columns, *([_cell(item.get(column)) for column in columns] for item in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) and abs(value) >= 1e-3 else str(value)

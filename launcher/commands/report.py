"""`zlaunch report`: runs side by side, with what differs between them and what came of it."""

from __future__ import annotations

import json
from typing import Any

import click

from launcher.backends import current_state
from launcher.errors import ZlaunchError
from launcher.lifecycle import sweep
from launcher.rundir import summary
from launcher.rundir.directory import RunDir
from launcher.rundir.state import first_failure

MEASURES = ("loss_first", "loss_last", "eval_loss", "accuracy_before", "accuracy_after", "seconds")
"""Columns taken from a run's results, where it has them."""


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="SWEEP|RUN...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def report(names: tuple[str, ...], as_json: bool) -> None:
    """Compare the points of a sweep, or any runs, in a table.

    Of a run that cannot be asked now it has the state that was last seen, and the reason on standard error.
    """
    rows = [row(run, values) for name in names for run, values in runs_of(name)]
    if as_json:
        for item in rows:
            click.echo(json.dumps(item, ensure_ascii=False))
        return
    click.echo(table(rows))
    for item in rows:
        if "error" in item:
            click.echo(f"{item['run']}: {item['error']}", err=True)


def runs_of(name: str) -> list[tuple[RunDir, dict[str, Any]]]:
    """The runs that are meant, each with its values in the sweep."""
    found = sweep.named(name)
    if isinstance(found, sweep.Sweep):
        return [(sweep.run_of(point), point.values) for point in found.points]
    return [(found, {})]


def row(run: RunDir, values: dict[str, Any]) -> dict[str, Any]:
    """One run: its values in the sweep, its state, its measures; where they cannot be had, as much as can, and why."""
    found: dict[str, Any] = {"run": run.run_id, **values, "state": None}
    try:
        if not run.run_json.exists():
            return {**found, "state": "not started"}
        state, why = current_state.last_seen(run)
        found.update({"state": state.value, **({"error": why} if why else {})})
        found.update(measures(run))
    except ZlaunchError as error:  # a damaged file of one run is no reason to hide the others
        found["error"] = str(error)
    return found


def measures(run: RunDir) -> dict[str, Any]:
    result = run.read_json(run.result_json) or {}
    found = {**evaluation(result), **result}
    losses = [metric["loss"] for metric in run.read_metrics() if "loss" in metric]
    started, ended = summary.span(run)
    found = {
        **({"loss_first": losses[0], "loss_last": losses[-1]} if losses else {}),
        "seconds": round(ended - started, 1) if started and ended else None,
        **{key: value for key, value in found.items() if value is not None},
    }
    chosen = {key: found[key] for key in MEASURES if isinstance(found.get(key), (int, float))}
    failure = first_failure(run)
    return {**chosen, **({"failure": failure.get("message") or failure.get("cause")} if failure else {})}


def evaluation(result: dict[str, Any]) -> dict[str, Any]:
    """What result.json says of the held-out records, before the training and after it."""
    scores = result.get("eval") or {}
    before, after = scores.get("before") or {}, scores.get("after") or {}
    return {
        "eval_loss": after.get("loss"),
        "accuracy_before": before.get("accuracy"),
        "accuracy_after": after.get("accuracy"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Plain text columns; a value that a run does not have is a dash."""
    columns = list(dict.fromkeys(key for item in rows for key in item if key not in ("failure", "error")))
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

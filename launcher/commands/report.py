"""`zlaunch report`: a table of runs, with their values in a sweep and their results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from launcher.backends import current_state
from launcher.commands.run_argument import warn_of_damage
from launcher.errors import RunNotFound, ZlaunchError
from launcher.lifecycle import sweep
from launcher.rundir import reading, summary
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState, first_failure

MEASURES = ("loss_first", "loss_last", "eval_loss", "accuracy_before", "accuracy_after", "seconds")
"""Columns for the results of a run, if it has them."""
MOST_COMPARED = 8
"""Runs whose differing settings stand below the table; a page shows those of more."""


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="SWEEP|RUN...")
@click.option("--html", "file", metavar="FILE", type=click.Path(path_type=Path), help="Write a page instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def report(names: tuple[str, ...], file: Path | None, as_json: bool) -> None:
    """Compare the points of a sweep, or any runs, in a table or on a page.

    The page of one run is that of its directory (report.html): curves, scores, every answer, data, settings, history.

    If the target of a run does not answer, the table shows the last known state, and standard error the reason.
    """
    runs = [found for name in names for found in runs_of(name)]
    for run, _ in runs:
        warn_of_damage(run)
    if file is not None:
        write_page(runs, file, title=names[0])
        click.echo(str(file))
        return
    rows = [row(run, values) for run, values in runs]
    if as_json:
        for item in rows:
            click.echo(json.dumps(item, ensure_ascii=False))
        return
    click.echo(table(rows))
    if 1 < len(runs) <= MOST_COMPARED and not any(values for _, values in runs):
        print_differences([run for run, _ in runs])
    print_hangs(rows)
    for item in rows:
        if "error" in item:
            click.echo(f"{item['run']}: {item['error']}", err=True)


def print_differences(runs: Sequence[RunDir]) -> None:
    """Print what differs between runs that are no sweep, and which of their scores cannot be compared."""
    from launcher.show.page import compare, gather  # slow to import, with Rich

    pages = []
    for run in runs:
        with contextlib.suppress(ZlaunchError):  # the table says what is damaged
            pages.append(gather.run_page(run, current_state.recorded_state(run.record)))
    if len(pages) < 2:
        return
    found = compare.comparison(pages, [{}] * len(pages))
    names = [item["name"] for item in found["rows"]]
    if found["different"]:
        rows = [{"differs": key, **dict(zip(names, values, strict=True))} for key, values in found["different"].items()]
        click.echo(f"\n{table(rows)}")
    if found["best"] and found["best"]["others"]:
        best = names[found["best"]["row"]]
        click.echo(
            f"scored on other records than {best}, so not comparable with it: {', '.join(found['best']['others'])}"
        )


def print_hangs(rows: list[dict[str, Any]]) -> None:
    """Print the stacks of each run that hung."""
    for item in rows:
        if "hang" in item:
            from launcher.show.stack_table import print_stacks
            from launcher.show.terminal import Console

            click.echo(f"\n{item['run']}: {item['hang'].get('message')}")
            print_stacks(item["hang"].get("stacks") or (), Console())


def write_page(found: Sequence[tuple[RunDir, dict[str, Any]]], file: Path, *, title: str) -> None:
    """Write the page of one run, or that of several. Raises RunNotFound, TargetError."""
    from launcher.show.page import gather, write  # slow to import, with Rich

    pages, swept, missing = [], [], []
    for run, values in found:
        try:
            if not run.run_json.exists():
                missing.append(f"{run.run_id}: not started")
                continue
            state, error = current_state.last_seen(run)
            if error:
                click.echo(f"{run.run_id}: {error}", err=True)
            pages.append(gather.run_page(run, state))
            swept.append(values)
        except ZlaunchError as damaged:  # one damaged run must not hide the others
            missing.append(f"{run.run_id}: {damaged}")
    if not pages:
        raise RunNotFound(f"nothing to show: {'; '.join(missing)}")
    if len(found) == 1:
        write.write(file, write.run_text(pages[0]))
    else:
        write.write_comparison(title, pages, swept, missing, file)


def runs_of(name: str) -> list[tuple[RunDir, dict[str, Any]]]:
    """The runs meant by `name`, each with its values in the sweep."""
    found = sweep.find_run_or_sweep(name)
    if isinstance(found, sweep.Sweep):
        return [(sweep.run_of(point), point.values) for point in found.points]
    return [(found, {})]


def row(run: RunDir, values: dict[str, Any]) -> dict[str, Any]:
    """The row of a run: values in the sweep, state and results; with `error` if some of them cannot be read."""
    found: dict[str, Any] = {"run": run.run_id, **values, "state": None}
    try:
        if not run.run_json.exists():
            return {**found, "state": "not started"}
        state, error = current_state.last_seen(run)
        found.update({"state": state.value, **({"error": error} if error else {})})
        found.update(measures(run, state))
    except ZlaunchError as damaged:  # one damaged run must not hide the others
        found["error"] = str(damaged)
    return found


def measures(run: RunDir, state: RunState) -> dict[str, Any]:
    result, picture = run.read_json(run.result_json) or {}, reading.read(run, state)
    found = {
        "loss_first": picture.loss_first,
        "loss_last": picture.loss_last,
        "seconds": round(picture.seconds, 1) if picture.seconds else None,
        **{key: value for key, value in {**evaluation(result), **result}.items() if value is not None},
    }
    chosen = {key: found[key] for key in MEASURES if isinstance(found.get(key), (int, float))}
    chosen.update({"verdict": picture.verdict.rule} if picture.verdict else {})
    failure = first_failure(run)
    hang = summary.last_hang(run.read_events())
    return {
        **chosen,
        **({"failure": failure.get("message") or failure.get("cause")} if failure else {}),
        **({"hang": hang} if hang else {}),
    }


def evaluation(result: dict[str, Any]) -> dict[str, Any]:
    """The scores on the held-out records in result.json, before and after the training."""
    scores = result.get("eval") or {}
    before, after = scores.get("before") or {}, scores.get("after") or {}
    return {
        "eval_loss": after.get("loss"),
        "accuracy_before": before.get("accuracy"),
        "accuracy_after": after.get("accuracy"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Columns of plain text, with a dash for a missing value. Wide characters count two."""
    from rich.cells import cell_len

    columns = list(dict.fromkeys(key for item in rows for key in item if key not in ("failure", "error", "hang")))
    if any("failure" in item for item in rows):
        columns.append("failure")
    cells = [columns, *([_cell(item.get(column)) for column in columns] for item in rows)]
    widths = [max(cell_len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(text + " " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) and abs(value) >= 1e-3 else str(value)

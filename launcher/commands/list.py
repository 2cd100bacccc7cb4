"""`zlaunch list`: the runs, one line each."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

import click
import msgspec
from rich.cells import cell_len

from launcher.backends import BACKENDS, current_state
from launcher.errors import ZlaunchError
from launcher.machine.language.spoken import padded, said, shown
from launcher.machine.output import printable
from launcher.rundir import curve, find, reading
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState

WIDEST_RUN = 48
"""Columns of the terminal that all rows give to the run; a longer one takes its own."""


@click.command("list")
@click.option("--long", is_flag=True, help="Show what each training came to.")
@click.option("--all", "with_dry_runs", is_flag=True, help="List dry runs too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_(long: bool, with_dry_runs: bool, as_json: bool) -> None:
    """List the runs under $ZLAUNCH_RUNS (default ./runs), oldest first; dry runs only with --all.

    If the target of a run does not answer, its line shows the last known state and the reason. A run with a damaged
    record has no state.
    """
    runs = [run for run in find.list_runs(find.runs_root()) if with_dry_runs or not find.is_dry_run(run)]
    if not runs and not as_json:
        click.echo(f"no runs in {find.runs_root()}", err=True)
    rows, lines = [], []
    for run in runs:
        try:
            row = _rendered(run) if find.is_dry_run(run) else overview(run, long=long)
        except ZlaunchError as error:  # one damaged record must not hide the other runs
            if as_json:
                row = {"run": run.run_id, "state": None, "error": str(error), "directory": str(run.path)}
                lines.append(json.dumps(row))
            else:
                click.echo(f"{run.run_id}: {error}", err=True)
            continue
        rows.append(row)
        lines.append(json.dumps(row) if as_json else "")
    if not as_json:
        width = max((cell_len(row["run"]) for row in rows), default=0)
        lines = [printable(_line(row, min(width, WIDEST_RUN))) for row in rows]
    click.echo("".join(f"{line}\n" for line in lines), nl=False)


def overview(run: RunDir, *, long: bool = False) -> dict[str, Any]:
    """The row of a run; with `error` if its state is only the last known one, and with the verdict if `long`."""
    record = run.record
    last, damaged = curve.last_metric(run.metrics)
    if damaged:
        click.echo(f"warning: {run.metrics}: damaged lines", err=True)
    state, error = current_state.recorded_state(record), None
    if not state.is_final or state is RunState.LOST:
        state, error = current_state.last_seen(run)
    elif record.backend not in BACKENDS:
        error = f"{run.run_json} names no known backend"
    return {
        "run": run.run_id,
        "state": state.value,
        **({"error": error} if error else {}),
        "backend": record.backend,
        "created": record.created,
        "directory": str(run.path),
        "step": last.step if last else None,
        "loss": last.loss if last else None,
        **({"verdict": msgspec.to_builtins(reading.read(run, state).verdict)} if long else {}),
    }


def _rendered(run: RunDir) -> dict[str, Any]:
    """The row of a dry run."""
    return {
        "run": run.run_id,
        "state": "DRY RUN",
        "backend": run.read_plan().get("backend") or "-",
        "created": (run.plan_json if run.plan_json.exists() else run.path).stat().st_mtime,
        "directory": str(run.path),
        "step": None,
        "loss": None,
    }


def _line(row: dict[str, Any], width: int) -> str:
    """One line, with the run in a column of `width` columns of the terminal."""
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created"]))
    loss = (
        said("step {step} loss {loss}", step=row["step"], loss=f"{row['loss']:.4f}") if row["loss"] is not None else ""
    )
    pad = " " * (width - cell_len(row["run"]))
    line = f"{padded(said(row['state']), 10)} {created}  {row['backend']:<6} {row['run']}{pad}  {loss}".rstrip()
    if "error" in row:
        line += said("  (last known state: {reason})", reason=shown(row["error"].splitlines()[0]))
    if not row.get("verdict"):
        return line
    verdict = shown(row["verdict"]["line"])
    fits = cell_len(line) + 2 + cell_len(verdict) <= shutil.get_terminal_size((120, 24)).columns
    return f"{line}  {verdict}" if fits else f"{line}\n{'':<11}{verdict}"

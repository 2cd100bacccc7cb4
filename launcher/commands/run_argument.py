"""The RUN argument of commands that work on a single run."""

from __future__ import annotations

import click

from launcher.errors import RunNotFound
from launcher.node import processes
from launcher.rundir import find, jsonl, shapes
from launcher.rundir.directory import RunDir
from launcher.rundir.state import damaged_records


def find_run(text: str) -> RunDir:
    """The run meant by `text`. Raises RunNotFound, with a hint if `text` names a sweep."""
    try:
        return find.find_run(text, find.runs_root())
    except RunNotFound as error:
        from launcher.lifecycle import sweep  # only on this path: it imports much of the launcher

        found = sweep.find_sweep(text)
        if found is None:
            raise
        hint = f"{found.sweep_id} is a sweep: zlaunch report {found.sweep_id} shows its runs"
        raise RunNotFound(str(error), hint=hint) from None


def damage(run: RunDir) -> list[str]:
    """What is wrong with the node records, events and metrics of a run. What cannot be read is left out elsewhere."""
    found = [f"{path.relative_to(run.path)}: {reason}" for path, reason in damaged_records(run).items()]
    for path, shape in ((run.events, shapes.Event), (run.metrics, shapes.Metric)):
        if lines := jsonl.damaged_lines(path, shape):
            found.append(f"{path.name}: {len(lines)} cut off, the first is line {lines[0]}")
        elif jsonl.ends_torn(path) and not processes.find_run_processes(run.run_id):
            found.append(f"{path.name}: the last line is cut off")
    return found


def warn_of_damage(run: RunDir) -> None:
    """Report on standard error which files of a run are damaged."""
    for text in damage(run):
        click.echo(f"warning: damaged: {run.run_id}: {text}", err=True)

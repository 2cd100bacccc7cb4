"""The RUN argument of commands that work on a single run."""

from __future__ import annotations

import click

from launcher.errors import RunNotFound
from launcher.rundir import find
from launcher.rundir.directory import RunDir
from launcher.rundir.state import damage


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


def warn_of_damage(run: RunDir) -> None:
    """Report on standard error which files of a run are damaged."""
    for text in damage(run):
        click.echo(f"warning: damaged: {run.run_id}: {text}", err=True)

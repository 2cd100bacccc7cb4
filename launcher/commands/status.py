"""`zlaunch status RUN`: a run, its nodes and ranks, its progress, and why it failed."""

from __future__ import annotations

import contextlib
import json

import click
import msgspec

from launcher.backends import current_state
from launcher.commands.run_argument import find_run, warn_of_damage
from launcher.errors import TargetError
from launcher.rundir import reading, summary
from launcher.rundir.directory import RunDir
from launcher.rundir.picture import Picture
from launcher.rundir.state import RunState, damage


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
        warn_of_damage(found)
    else:
        print_status(found, reading.read(found, state))


def print_status(run: RunDir, picture: Picture) -> None:
    """Print one frame: the run, where it stands, its numbers, nodes, verdict, and its failure if it has one."""
    from launcher.show import final, frame, stack_table
    from launcher.show.terminal import Console

    console = Console()
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    lines = frame.report(picture, width=console.width, encoding=encoding, fold=console.is_terminal)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    for text in damage(run):
        console.print(f"  damaged     {text}", highlight=False, markup=False)
    hang = summary.last_hang([event.fields for event in picture.events])
    if hang and (picture.failure or {}).get("cause") != "hang":
        console.print(f"  hang        {hang.get('message')}", highlight=False, markup=False)
        stack_table.print_stacks(hang.get("stacks") or (), console)
    if picture.failure is not None:
        final.print_failure(run, console)

"""A start that a Ctrl-C broke off is taken back. Where that fails, the user hears of it, and it stays an interrupt."""

from __future__ import annotations

import click

from launcher.backends.base import Backend
from launcher.errors import ZlaunchError
from launcher.runs import RunDir


class StartInterrupted(KeyboardInterrupt):
    """A Ctrl-C while a run was being started, after `take_back`."""

    def __init__(self, ended: bool) -> None:
        super().__init__()
        self.ended = ended
        """Nothing of the run is left; False: the user has been told that it may run."""


def take_back(run: RunDir, backend: Backend) -> bool:
    """End what has begun of a run, with no checkpoint. False if it could not be ended, which is told on stderr."""
    try:
        backend.cancel(run, checkpoint=False)
        return True
    except ZlaunchError as error:
        why = f"{error}" + (f"\n  -> {error.hint}" if error.hint else "")
    except KeyboardInterrupt:
        why = "interrupted again"
    click.echo(f"error: {run.run_id} was not taken back and may run: {why}", err=True)
    click.echo(f"  -> zlaunch cancel {run.run_id} tries again", err=True)
    return False

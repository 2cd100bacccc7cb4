"""What a Ctrl-C ends: a start that it broke off, a run that is followed. Where the ending fails, the user hears of it,
and it stays an interrupt."""

from __future__ import annotations

import click

from launcher.backends.base import Backend
from launcher.errors import ZlaunchError
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState


class StartInterrupted(KeyboardInterrupt):
    """A Ctrl-C while a run was being started, after `take_back`."""

    def __init__(self, ended: bool) -> None:
        super().__init__()
        self.ended = ended
        """Nothing of the run is left; False: the user has been told that it may run."""


def take_back(run: RunDir, backend: Backend) -> bool:
    """End what has begun of a run, with no checkpoint. False if it could not be ended, which is told on stderr."""
    return _end(run, backend, checkpoint=False, failed="was not taken back and may run")


def stop(run: RunDir, backend: Backend) -> RunState:
    """End a run that was followed, with a checkpoint unless interrupted again; its state, as in `state_after`."""
    return state_after(run, backend, _end(run, backend, checkpoint=True, failed="was not ended and may run on"))


def state_after(run: RunDir, backend: Backend, ended: bool) -> RunState:
    """The state of a run that was just ended; RUNNING, which alone is not final, if it could not be ended."""
    if not ended:
        return RunState.RUNNING
    try:
        state = backend.state(run)
    except ZlaunchError:  # it was ended all the same
        return RunState.CANCELLED
    return state if state.is_final else RunState.CANCELLED


def _end(run: RunDir, backend: Backend, *, checkpoint: bool, failed: str) -> bool:
    try:
        try:
            backend.cancel(run, checkpoint=checkpoint)
        except KeyboardInterrupt:  # impatient: no checkpoint then
            if not checkpoint:
                raise
            backend.cancel(run, checkpoint=False)
        return True
    except ZlaunchError as error:
        why = f"{error}" + (f"\n  -> {error.hint}" if error.hint else "")
    except KeyboardInterrupt:
        why = "interrupted again"
    click.echo(f"error: {run.run_id} {failed}: {why}", err=True)
    click.echo(f"  -> zlaunch cancel {run.run_id} tries again", err=True)
    return False

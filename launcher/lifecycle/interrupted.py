"""Ctrl-C: cancel a half-started run, or stop a followed one. If that fails, tell the user and still exit with 130."""

from __future__ import annotations

import contextlib

from launcher.backends.base import Backend
from launcher.errors import TargetError, ZlaunchError
from launcher.machine.language import spoken
from launcher.rundir.claims import Busy
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState


class StartInterrupted(KeyboardInterrupt):
    """A Ctrl-C, or a `zlaunch cancel` of another command, during the start of a run; raised after `cancel_start`."""

    def __init__(self, cancelled: bool, *, elsewhere: bool) -> None:
        super().__init__()
        self.elsewhere = elsewhere
        """Whether another command cancelled the run."""
        self.cancelled = cancelled
        """False: the run may still be running; an error message was printed."""


def cancel_start(run: RunDir, backend: Backend) -> bool:
    """Cancel a half-started run without a checkpoint. Returns False, after an error on stderr, if that failed."""
    return _cancel(run, backend, checkpoint=False)


def stop(run: RunDir, backend: Backend) -> RunState:
    """Stop a followed run; a second Ctrl-C skips its last checkpoint. Returns its state like `state_after_cancel`."""
    return state_after_cancel(run, backend, _cancel(run, backend, checkpoint=True))


def state_after_cancel(run: RunDir, backend: Backend, cancelled: bool) -> RunState:
    """The final state of a cancelled run, or RUNNING if it could not be cancelled."""
    if not cancelled:
        return RunState.RUNNING
    try:
        state = backend.state(run)
    except ZlaunchError:  # the cancel itself succeeded
        return RunState.CANCELLED
    return state if state.is_final else RunState.CANCELLED


def _cancel(run: RunDir, backend: Backend, *, checkpoint: bool) -> bool:
    held = run.is_claimed
    with contextlib.suppress(Busy):  # another command is starting the run again, and heeds the record
        run.claim("cancel", exclusive=False)
    try:
        try:
            backend.cancel(run, checkpoint=checkpoint)
        except KeyboardInterrupt:
            if not checkpoint:
                raise
            backend.cancel(run, checkpoint=False)
        return True
    except ZlaunchError as error:
        reason = error.text
    except KeyboardInterrupt:
        reason = "interrupted again"
    finally:
        if not held:
            run.release()
    what = f"{run.run_id} was not cancelled and may still be running: {reason}"
    spoken.tell(TargetError(what, hint=f"try again: zlaunch cancel {run.run_id}", code="ZL-RUN-06"))
    return False

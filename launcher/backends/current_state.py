"""A run's state as every command sees it: by its backend, and kept in run.json once it is final."""

from __future__ import annotations

from launcher.backends import backend_of
from launcher.errors import RunNotFound, TargetError
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState


def of(run: RunDir) -> RunState:
    """The run's state now; a final one is not asked for again. Raises TargetError when its target cannot be asked.

    Asking may take long, and the run may be resumed meanwhile: what was said of its earlier start is no word on this.
    """
    while True:
        record = run.record
        known = known_of(record)
        if known.is_final and known is not RunState.LOST:
            return known
        state = backend_of(record.backend).state(run)
        if state is known or keep(run, state, record):
            return state


def last_seen(run: RunDir) -> tuple[RunState, str | None]:
    """The run's state now; where it cannot be asked, the one that was last seen, and why. Raises RunNotFound for a run
    whose record is damaged."""
    try:
        return of(run), None
    except TargetError as error:
        return known_of(run.record), str(error)


def known_of(record: RunRecord) -> RunState:
    """The last state that was seen. Raises RunNotFound for one that this version does not know."""
    try:
        return RunState(record.state)
    except ValueError as error:
        raise RunNotFound(f"{record.run_id}: its record has the state {record.state!r}, which is none") from error


def keep(run: RunDir, state: RunState, asked: RunRecord) -> bool:
    """Write a state into the record that it was asked for; False: somebody has changed that record since."""
    return run.update_record(only_if=lambda now: now == asked, state=state.value).state == state.value

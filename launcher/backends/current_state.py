"""The state of a run as every command sees it: asked of its backend, and kept in run.json once it is final."""

from __future__ import annotations

import contextlib

from launcher.backends import backend_of_run
from launcher.errors import RunNotFound, TargetError
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState


def current(run: RunDir) -> RunState:
    """Return the state of the run now; do not ask again for a final one. Raises TargetError if its target is silent.

    The answer may take long, and another command may resume the run meanwhile. A state of the earlier start says
    nothing about the new one, so ask again.
    """
    while True:
        record = run.record
        recorded = recorded_state(record)
        if recorded.is_final and recorded is not RunState.LOST:
            return recorded
        state = backend_of_run(run).state(run)
        if state.is_final and record.submitted is None:
            # A start is under way, and the nodes' records are those of the start before. Its command would take a
            # CANCELLED in the record for a cancel of its own start.
            return state
        if state is recorded or store(run, state, record):
            return state


def observed(run: RunDir, state: RunState | None = None) -> RunState:
    """Return the state of the run now, by living evidence: for commands that end a run or start it again.

    A record may say that a run is over while a job of it waits in a queue or a process of it lives, for example after a
    disk was full. `state`: what `current` has just returned. Raises TargetError if its target is silent.
    """
    state = state or current(run)
    if not state.is_final or not backend_of_run(run).is_alive(run):
        return state
    with contextlib.suppress(OSError):
        run.update_record(state=RunState.RUNNING.value)
    return RunState.RUNNING


def last_seen(run: RunDir) -> tuple[RunState, str | None]:
    """Return (state now, None), or (last recorded state, reason) if the target does not answer.

    Raises RunNotFound for a run whose record is damaged.
    """
    try:
        return current(run), None
    except TargetError as error:
        return recorded_state(run.record), str(error)


def recorded_state(record: RunRecord) -> RunState:
    """Return the state in the record. Raises RunNotFound for one that this version does not know."""
    try:
        return RunState(record.state)
    except ValueError as error:
        raise RunNotFound(
            f"{record.run_id}: unknown state {record.state!r} in its record, run.json", code="ZL-RUN-02"
        ) from error


def store(run: RunDir, state: RunState, record: RunRecord) -> bool:
    """Write the state if run.json still holds `record`; return False if another command has changed it since."""
    try:
        return run.update_record(only_if=lambda now: now == record, state=state.value).state == state.value
    except OSError:  # a full or read-only file system: the answer is right all the same
        return True

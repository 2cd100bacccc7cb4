"""A run's state as every command sees it: by its backend, and kept in run.json once it is final."""

from __future__ import annotations

from launcher.backends import backend_of
from launcher.backends.base import RunState
from launcher.runs import RunDir


def of(run: RunDir) -> RunState:
    """The run's state now; a final one is not asked for again. Raises TargetError when its target cannot be asked."""
    record = run.record
    known = RunState(record.state)
    if known.is_final and known is not RunState.LOST:
        return known
    state = backend_of(record.backend).state(run)
    if state is not known:
        run.update_record(state=state.value)
    return state

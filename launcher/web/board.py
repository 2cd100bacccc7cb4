"""What the server shows of the runs, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from launcher.errors import RunNotFound, ZlaunchError
from launcher.rundir import curve
from launcher.rundir.directory import RunDir
from launcher.rundir.picture import Picture
from launcher.rundir.state import RunState
from launcher.show.page import gather
from launcher.web.asked_states import Asked, StateOf

Row = dict[str, Any]
UNKNOWN = ("name", "backend", "started", "state", "step", "loss")


class Board:
    """The runs that `runs` lists; `state_of` asks for the state of one."""

    def __init__(self, runs: Callable[[], Iterable[RunDir]], state_of: StateOf) -> None:
        self.runs, self.state_of = runs, state_of
        self._asked = Asked(state_of)

    def find(self, run_id: str) -> RunDir:
        """The run of the list with this id; a path or a prefix is none. Raises RunNotFound."""
        for run in self.runs():
            if run.run_id == run_id:
                return run
        raise RunNotFound(f"no run {run_id}")

    def rows(self) -> list[Row]:
        """A row per run, newest first; `state` is null while nobody has answered."""
        found = [(run, self._recorded(run)) for run in reversed(list(self.runs()))]
        states = self._asked.states([run for run, row in found if not row["error"] and not _is_over(row["state"])])
        for run, row in found:
            if run.run_id in states:
                state = states[run.run_id]
                row.update({"error": str(state)} if isinstance(state, ZlaunchError) else {"state": state.value})
            elif not _is_over(row["state"]):
                row["state"] = None
        return [row for _, row in found]

    def _recorded(self, run: RunDir) -> Row:
        """The row of a run by its own files."""
        try:
            record, (last, _) = run.record, curve.last_metric(run.metrics)
            found = {"id": run.run_id, "name": record.name, "backend": record.backend, "started": record.submitted}
            step, loss = (last.step, last.loss) if last else (None, None)
            return {**found, "state": record.state, "step": step, "loss": loss, "error": None}
        except ZlaunchError as error:  # one damaged run must not hide the others
            return {**dict.fromkeys(UNKNOWN), "id": run.run_id, "error": str(error)}


def _is_over(state: str | None) -> bool:
    """Whether a recorded state is the last word; a lost run may be found again."""
    return state in (RunState.SUCCEEDED.value, RunState.FAILED.value, RunState.CANCELLED.value)


def live(seen: Picture) -> dict[str, Any]:
    """What changes on the page of a run while it lasts. If `whole` changes, the page is loaded again."""
    shown = [event for event in seen.events if event.event not in ("progress", "memory")]
    count = seen.count
    return {
        "whole": [seen.state, seen.phase, len(shown), bool(seen.curve), bool(seen.held_out), seen.is_program],
        "final": RunState(seen.state).is_final,
        "phase": seen.phase,
        "done": count.done if count else None,
        "total": count.total if count else None,
        "seconds_left": seen.seconds_left,
        "loss": seen.loss,
        "tokens_per_second": seen.tokens_per_second,
        "curves": gather.curves(seen),
        "device": seen.device,
        "planned_bytes": seen.planned_bytes,
        "nodes": [msgspec.to_builtins(node) for node in seen.nodes],
    }

"""`zlaunch cancel`: ends a run, or every point of a sweep, and keeps those from starting whose turn has not come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher import __version__
from launcher.backends import backend_of, current_state
from launcher.backends.base import Arrays
from launcher.errors import TargetError, ZlaunchError
from launcher.job.load import read_job
from launcher.lifecycle import sweep
from launcher.lifecycle.sweep import Sweep
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState

OVER = (RunState.SUCCEEDED.value, RunState.FAILED.value, RunState.CANCELLED.value)
"""Nothing is left to end; of a LOST one something may be."""
NOT_STARTED = "not started"


@dataclass(frozen=True)
class Ended:
    """What became of one run."""

    run: RunDir
    was: str | None
    """Its state before, or NOT_STARTED; None: it could not be asked."""
    state: str | None
    """Its state now; None: it could not be ended, see `error`."""
    error: ZlaunchError | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.run.run_id}: not cancelled"
        if self.was == NOT_STARTED:
            return f"{self.run.run_id}: {self.state} before it started"
        return f"{self.run.run_id}: {'already ' if self.was in OVER else ''}{self.state}"

    def as_dict(self) -> dict[str, Any]:
        told = {"run": self.run.run_id, "was": self.was, "state": self.state, "directory": str(self.run.path)}
        return {**told, **({} if self.error is None else {"error": str(self.error)})}


def one(run: RunDir, *, checkpoint: bool) -> Ended:
    """End a run that is not over. Raises TargetError when something of it may be left."""
    was = current_state.current(run).value
    if was in OVER:
        return Ended(run, was, was)
    backend_of(run.record.backend).cancel(run, checkpoint=checkpoint)
    return Ended(run, was, _settled(run))


def whole(points: Sweep, *, checkpoint: bool) -> list[Ended]:
    """End the points that are not over, and keep those from starting whose turn has not come; each one's outcome."""
    if points.backend != "slurm":
        sweep.revoke(points)  # first: what its launcher starts from here on, it takes back itself
    found = [_look(points, sweep.run_of(point)) for point in points.points]
    todo = [item.run for item in found if item.error is None and item.was not in OVER]
    failed = _end(points.backend, todo, checkpoint)
    return [_after(item, failed.get(item.run.run_id)) if item.run in todo else item for item in found]


def refuse_rest(points: Sweep, ended: Sequence[Ended]) -> None:
    """Raises TargetError if some points could not be ended, with each one's reason."""
    bad = [item for item in ended if item.error is not None]
    if bad:
        why = "".join(f"\n  {item.run.run_id}: {item.error}" for item in bad)
        raise TargetError(
            f"{len(bad)} of {len(ended)} points of {points.sweep_id} could not be cancelled{why}",
            hint=next((item.error.hint for item in bad if item.error is not None and item.error.hint), None),
        )


def _look(points: Sweep, run: RunDir) -> Ended:
    """A point before it is ended; one that was never started is so only on paper, and gets its record here."""
    try:
        if not run.run_json.exists() and _keep_from_starting(points, run):
            return Ended(run, NOT_STARTED, RunState.CANCELLED.value)
        was = current_state.current(run).value
        return Ended(run, was, was)
    except ZlaunchError as error:
        return Ended(run, None, None, error)


def _keep_from_starting(points: Sweep, run: RunDir) -> bool:
    """Give a point whose turn has not come its job and a record: `list` and `report` show it, `resume` starts it.

    False: it was started just now. What its launcher has written of it since is what finds it on its hosts.
    """
    file = sweep.job_file(points, run)
    job = read_job(file)
    if file != run.job_yaml:
        run.write({run.job_yaml.name: file.read_text(encoding="utf-8")})
    record = RunRecord(
        run_id=run.run_id,
        name=job.spec.name,
        backend=points.backend,
        created=points.created,
        zlaunch=__version__,
        state=RunState.CANCELLED.value,
    )
    return run.save_record(record, only_first=True)


def _end(name: str, of: Sequence[RunDir], checkpoint: bool) -> dict[str, ZlaunchError]:
    """Cancel runs of one backend, together where it can; {run id: why one could not be ended}."""
    backend = backend_of(name)
    failed: dict[str, ZlaunchError] = {}
    if isinstance(backend, Arrays):
        try:
            failed.update(backend.cancel_all(of, checkpoint=checkpoint))
        except ZlaunchError as error:
            failed.update(dict.fromkeys([run.run_id for run in of], error))
        return failed
    for run in of:
        try:
            backend.cancel(run, checkpoint=checkpoint)
        except ZlaunchError as error:
            failed[run.run_id] = error
    return failed


def _after(item: Ended, error: ZlaunchError | None) -> Ended:
    if error is None:
        try:
            return Ended(item.run, item.was, _settled(item.run))
        except ZlaunchError as unknown:
            error = unknown
    return Ended(item.run, item.was, None, error)


def _settled(run: RunDir) -> str:
    """The state of a run that was just ended."""
    after = current_state.current(run).value
    if after in OVER:
        return after
    # Nothing is left of it, and none of its agents is there to say so.
    return run.update_record(state=RunState.CANCELLED.value).state

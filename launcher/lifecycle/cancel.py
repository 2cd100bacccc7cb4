"""Cancel a run, or a whole sweep: running points end, and waiting points do not start."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from launcher import __version__
from launcher.backends import backend_of, backend_of_run, current_state
from launcher.backends.base import Arrays, Backend
from launcher.errors import TargetError, ZlaunchError
from launcher.job.load import read_job
from launcher.lifecycle import sweep
from launcher.lifecycle.sweep import Sweep
from launcher.rundir.claims import Busy
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState

OVER = (RunState.SUCCEEDED.value, RunState.FAILED.value, RunState.CANCELLED.value)
"""States with nothing left to cancel. LOST is not one: some of its processes may still run."""
NOT_STARTED = "not started"
AT_ONCE = 8
"""Points of a sweep that are asked at once whether something of them lives."""
START_WAIT = 60.0
"""Seconds to wait for a command that is about to start the run: from then on its start heeds a cancel."""


@dataclass(frozen=True)
class CancelResult:
    """What a cancel did to one run."""

    run: RunDir
    was: str | None
    """The state before, or NOT_STARTED; None if the target did not answer."""
    state: str | None
    """The state now; None if the cancel failed with `error`."""
    error: ZlaunchError | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.run.run_id}: not cancelled"
        if self.was == NOT_STARTED:
            return f"{self.run.run_id}: {self.state} before it started"
        return f"{self.run.run_id}: {'already ' if self.was in OVER else ''}{self.state}"

    def as_dict(self) -> dict[str, Any]:
        row = {"run": self.run.run_id, "was": self.was, "state": self.state, "directory": str(self.run.path)}
        return row if self.error is None else {**row, "error": str(self.error)}


def cancel_run(run: RunDir, *, checkpoint: bool) -> CancelResult:
    """Cancel a run unless it is over. Raises TargetError if some of its processes may still run."""
    claim_to_end(run)
    try:
        was = current_state.observed(run).value
        if was in OVER:
            return CancelResult(run, was, was)
        backend = backend_of_run(run)
        backend.cancel(run, checkpoint=checkpoint)
        return CancelResult(run, was, _final_state(run, backend))
    finally:
        run.release()


def claim_to_end(run: RunDir) -> None:
    """Keep others from starting the run meanwhile. Several commands may end a run at once. Raises Busy.

    A command that starts the run heeds a cancel as soon as it has recorded the start, so wait no longer than that.
    """
    end = time.monotonic() + START_WAIT
    while True:
        try:
            return run.claim("cancel", exclusive=False)
        except Busy:
            if run.run_json.exists() and not current_state.recorded_state(run.record).is_final:
                return None
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


def cancel_sweep(points: Sweep, *, checkpoint: bool) -> list[CancelResult]:
    """Cancel every point that is not over. Returns the result of each point."""
    if points.backend != "slurm":
        sweep.mark_cancelled(points)  # first, because its launcher cancels by itself what it starts from now on
        return _cancel_points(points, checkpoint=checkpoint)
    with sweep.claim(points, "cancel", exclusive=False):
        return _cancel_points(points, checkpoint=checkpoint)


def _cancel_points(points: Sweep, *, checkpoint: bool) -> list[CancelResult]:
    backend = backend_of(points.backend)
    found = _observed(backend, [_before_cancel(points, sweep.run_of(point)) for point in points.points])
    todo = [item.run for item in found if item.error is None and item.was not in OVER]
    failed = _cancel_each(backend, todo, checkpoint)
    return [_after_cancel(item, failed.get(item.run.run_id), backend) if item.run in todo else item for item in found]


def raise_failures(points: Sweep, results: Sequence[CancelResult]) -> None:
    """Raise TargetError, with the reason for each point, if some points could not be cancelled."""
    failed = [(item.run.run_id, item.error) for item in results if item.error is not None]
    if failed:
        reasons = "".join(f"\n  {run_id}: {error}" for run_id, error in failed)
        raise TargetError(
            f"{len(failed)} of {len(results)} points of {points.sweep_id} could not be cancelled{reasons}",
            hint=next((error.hint for _, error in failed if error.hint), None),
            code="ZL-RUN-06",
        )


def _before_cancel(points: Sweep, run: RunDir) -> CancelResult:
    """The state of a point; a point that never started is recorded as cancelled here."""
    try:
        if not run.run_json.exists() and _record_as_cancelled(points, run):
            return CancelResult(run, NOT_STARTED, RunState.CANCELLED.value)
        was = current_state.current(run).value
        return CancelResult(run, was, was)
    except ZlaunchError as error:
        return CancelResult(run, None, None, error)


def _observed(backend: Backend, found: Sequence[CancelResult]) -> list[CancelResult]:
    """The same, but a point that is recorded as over is RUNNING if something of it lives, as for a run alone."""
    over = [item.run for item in found if item.was in OVER]
    try:
        alive = _alive_among(backend, over)
    except ZlaunchError as error:
        return [CancelResult(item.run, None, None, error) if item.run in over else item for item in found]
    running = RunState.RUNNING.value
    for run in alive:
        with contextlib.suppress(OSError):  # a full disk
            run.update_record(state=running)
    return [CancelResult(item.run, running, running) if item.run in alive else item for item in found]


def _alive_among(backend: Backend, runs: Sequence[RunDir]) -> list[RunDir]:
    """The runs of which something lives. Raises TargetError. Hosts that are gone answer slowly, so ask some at once."""
    if isinstance(backend, Arrays):
        alive = backend.alive_among(runs) if runs else set()
        return [run for run in runs if run.run_id in alive]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [run for run, lives in zip(runs, pool.map(backend.is_alive, runs), strict=True) if lives]


def _record_as_cancelled(points: Sweep, run: RunDir) -> bool:
    """Give a waiting point its job file and a record, so that `list` and `report` show it and `resume` starts it.

    Returns False if it was started a moment ago: then the record of its launcher, which knows its hosts, is kept.
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


def _cancel_each(backend: Backend, runs: Sequence[RunDir], checkpoint: bool) -> dict[str, ZlaunchError]:
    """Cancel runs of one backend, together if it can. Returns {run id: error} of the failures."""
    failed: dict[str, ZlaunchError] = {}
    if isinstance(backend, Arrays):
        try:
            failed.update(backend.cancel_all(runs, checkpoint=checkpoint))
        except ZlaunchError as error:
            failed.update(dict.fromkeys([run.run_id for run in runs], error))
        return failed
    for run in runs:
        try:
            claim_to_end(run)
            backend.cancel(run, checkpoint=checkpoint)
        except ZlaunchError as error:
            failed[run.run_id] = error
        finally:
            run.release()
    return failed


def _after_cancel(before: CancelResult, error: ZlaunchError | None, backend: Backend) -> CancelResult:
    if error is None:
        try:
            return CancelResult(before.run, before.was, _final_state(before.run, backend))
        except ZlaunchError as unknown:
            error = unknown
    return CancelResult(before.run, before.was, None, error)


def _final_state(run: RunDir, backend: Backend) -> str:
    """The state of a run that was just cancelled.

    Where a command was starting it, the cancel may have come too early to find anything: then cancel again.
    """
    while True:
        start = run.record.start
        state = current_state.current(run).value
        if state in OVER:
            return state
        try:  # nothing of the run is left, and no agent of it was there to write that down
            record = run.update_record(only_if=lambda now: now.start == start, state=RunState.CANCELLED.value)  # noqa: B023
        except OSError:  # a full disk
            return RunState.CANCELLED.value
        if record.state == RunState.CANCELLED.value:
            return record.state
        backend.cancel(run, checkpoint=False)

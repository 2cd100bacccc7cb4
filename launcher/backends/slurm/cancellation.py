"""Cancel Slurm runs in four steps: forbid requeues, stop orderly, kill what is left, settle each run.

The progress of the runs is read from their own files. Slurm gets only the query that all watchers share.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence

from launcher.backends.slurm.job_files import append_event, job_id, secrets_file
from launcher.backends.slurm.job_state import is_over, own_state
from launcher.backends.slurm.query import JobWatch
from launcher.backends.slurm.shell import Shell
from launcher.backends.slurm.synced_files import RESULTS
from launcher.errors import TargetError
from launcher.machine import process
from launcher.node import run_files
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState

POLL = 1.0
"""Seconds between two looks at the files of a run that is being cancelled."""
CLEAR_SECONDS = 1.0
"""Seconds for Slurm to clear a job away whose script has ended, before the first question."""
KILL_WAIT = 60.0
"""Seconds for Slurm to end a job (its own KillWait is 30 by default), and for the shared query to show it."""
SAVE_AND_STOP, STOP, STOP_AT_ONCE = "12", "15", "15 15"
"""Signal numbers in the file that the first node's agent reads: SIGUSR2, SIGTERM, and a second SIGTERM."""
SECOND_SIGNAL_PAUSE = 0.8
"""Seconds between two signals. The agent takes one that comes sooner as an echo."""


class Cancellation:
    """Cancels runs that go through one Slurm, in the time that one run takes."""

    def __init__(self, shell: Shell, watch: JobWatch, runs: Sequence[RunDir]) -> None:
        self.shell, self.watch, self.runs = shell, watch, runs
        # A run without a job was interrupted while it was queued. If it is queued, its script finds the mark and ends.
        self.queued = [run for run in runs if job_id(run)]

    def execute(self, *, checkpoint: bool) -> dict[str, TargetError]:
        """Cancel the runs; return {run id: error} of those that may still run. Raises TargetError if Slurm is down."""
        self._forbid_requeues()
        if not self.queued:
            return {}
        self._stop_orderly(checkpoint)
        self._kill_rest()
        return self._settle()

    def _forbid_requeues(self) -> None:
        for run in self.runs:
            with contextlib.suppress(OSError):  # a full disk is no reason not to cancel
                self.shell.write(run.control_dir / run_files.CANCELLED, json.dumps({"time": time.time()}))

    def _stop_orderly(self, checkpoint: bool) -> None:
        """Have the agents of running jobs end them, with a last checkpoint if asked."""
        states = {run.run_id: self._refresh(run) for run in self.queued}
        running = [run for run in self.queued if states[run.run_id] is RunState.RUNNING]
        waiting = [run for run in self.queued if states[run.run_id] is RunState.PENDING]
        if running and waiting:  # otherwise the end of a running job starts a waiting one
            self._scancel(waiting)
        if running:
            self._wake(running)
            self._signal_agents(running, checkpoint)
            process.wait_until(
                lambda: all(self._refresh(run).is_final for run in running),
                max(sum(run.stop_seconds()[0 if checkpoint else 1 :]) + 10.0 for run in running),
                POLL,
            )
            time.sleep(CLEAR_SECONDS)

    def _wake(self, runs: Sequence[RunDir]) -> None:
        """Let agents and wardens go on that were stopped (SIGSTOP): they would heed no file, and their job stays."""
        self.shell.run(["scancel", "--signal=CONT", *map(job_id, runs)])

    def _signal_agents(self, runs: Sequence[RunDir], checkpoint: bool) -> None:
        """Signal through files: a signal that Slurm sends reaches every process of the ranks, too."""
        for numbers in [SAVE_AND_STOP] if checkpoint else [STOP, STOP_AT_ONCE]:
            for run in runs:
                with contextlib.suppress(OSError):
                    self.shell.write(run.path / run_files.signals(0), numbers + "\n")
            time.sleep(0.0 if checkpoint else SECOND_SIGNAL_PAUSE)

    def _kill_rest(self) -> None:
        """Have Slurm end the jobs that are not over, and wait for it."""
        self.watch.expire()
        if left := [run for run in self.queued if not self._refresh(run).is_final or self._error(run)]:
            self._scancel(left)
        process.wait_until(lambda: not any(self._error(run) for run in self.queued), KILL_WAIT, POLL)

    def _settle(self) -> dict[str, TargetError]:
        """Remove the secrets of runs that are over, copy their results, and name the others."""
        errors = {run.run_id: error for run in self.queued if (error := self._error(run)) is not None}
        for run in self.queued:
            if run.run_id not in errors:
                self.shell.remove(secrets_file(run))
                if not self._refresh(run).is_final:
                    append_event(self.shell, run, "slurm_end", job=job_id(run), reason="cancelled")
                self.shell.fetch(run, RESULTS)
        self.watch.expire()
        return errors

    def _refresh(self, run: RunDir) -> RunState:
        """Return the state by the run's own files as they are now."""
        self.shell.fetch(run, (run_files.NODES, run_files.EVENTS))
        return own_state(run)[0]

    def _error(self, run: RunDir) -> TargetError | None:
        """Return an error if the run's job is not over. One question to Slurm serves all runs."""
        job = job_id(run)
        snapshot = self.watch.snapshot(job, lambda: map(job_id, self.queued))
        if is_over(run, snapshot):
            return None
        native = snapshot.job.native if snapshot.job else "there"
        return TargetError(f"job {job} is still {native}", hint=f"look at `squeue -j {job}`", code="ZL-RUN-06")

    def _scancel(self, runs: Sequence[RunDir]) -> None:
        """Have Slurm end the jobs. Raises TargetError when Slurm does not answer."""
        jobs = [job_id(run) for run in runs]
        result = self.shell.run(["scancel", *jobs])
        self.watch.expire()
        if result.code != 0 and self.watch.snapshot(jobs[0], lambda: jobs).error is not None:
            lines = " ".join(result.last_lines)
            raise TargetError(
                f"scancel {' '.join(jobs)}: {lines}", hint="is the Slurm controller up?", code="ZL-RUN-06"
            )

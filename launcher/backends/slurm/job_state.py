"""The state of a Slurm run, from three sources: its own events, its agents' records, and Slurm.

The batch script writes what it decides into the events. The newest statement wins. Where Slurm no longer knows the job,
the run's own files decide.
"""

from __future__ import annotations

import re
import time
from typing import Any

from launcher.backends.slurm.job_files import last_event
from launcher.backends.slurm.query import Snapshot
from launcher.backends.slurm.states import JobInfo
from launcher.machine import process
from launcher.node import run_files
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState, derive_state

SUBMITTING = 60.0
"""Seconds in which a job that Slurm does not list yet counts as waiting."""
TAIL_LINES = 20

ENDINGS: dict[str, tuple[str, str]] = {
    "TIMEOUT": (
        "the time limit ended the job before it could save a checkpoint",
        "raise slurm.signal_before or slurm.time, or lower train.checkpoint_every",
    ),
    "OUT_OF_MEMORY": ("the job used more memory than it requested", "raise slurm.mem"),
    "NODE_FAIL": ("a node failed and Slurm did not requeue the job", "continue with `zlaunch resume`"),
    "PREEMPTED": ("the job was preempted and not requeued", "continue with `zlaunch resume`"),
    "BOOT_FAIL": ("a node did not boot", "continue with `zlaunch resume`, or leave the node out with slurm.exclude"),
    "DEADLINE": ("the job passed its deadline", "see slurm.sbatch: deadline"),
    "CANCELLED": ("the job was cancelled in Slurm", "continue with `zlaunch resume`"),
}
"""Slurm's state -> (what happened, what to do), for jobs whose agents could not say it."""
NO_GPUS = (
    "Unable to create step for job .*: Invalid generic resource",
    "Slurm gave the job no GPUs, so its agents could not start",
    "GPUs need SelectType=select/cons_tres or select/cons_res; `scontrol show config | grep SelectType` shows it",
)
"""(pattern of srun's words in the log, what happened, what to do)"""


def own_state(run: RunDir) -> tuple[RunState, float]:
    """Return (state, unix seconds of the statement) from the batch script's last event and the agents' records."""
    event = last_event(run, "slurm_submit", "slurm_start", "slurm_requeue", "slurm_end")
    since = float(event.get("time", 0.0))
    by_records = derive_state(run)
    if event.get("event") == "slurm_end":
        if by_records in (RunState.SUCCEEDED, RunState.CANCELLED, RunState.FAILED):
            return by_records, since
        return (RunState.CANCELLED if event.get("reason") == "cancelled" else RunState.FAILED), since
    if event.get("event") == "slurm_start":
        return (RunState.SUCCEEDED if by_records is RunState.SUCCEEDED else RunState.RUNNING), since
    return RunState.PENDING, since  # slurm_submit, slurm_requeue


def merge_states(own: RunState, since: float, snapshot: Snapshot, *, by_records: RunState) -> RunState:
    """Return the state of a run that its own files do not know to be over. Pure.

    `own`, `since`: from `own_state`. `by_records`: the state by the agents' records, which have a heartbeat.
    """
    if snapshot.job is not None and snapshot.time > since and snapshot.error is None:
        return snapshot.job.state
    if snapshot.job is not None or snapshot.error is not None or not snapshot.searched:
        return own
    if snapshot.time - since < SUBMITTING:
        return own
    # Slurm has forgotten the job, and its script has not written how it ended.
    return RunState.RUNNING if by_records is RunState.RUNNING else RunState.LOST


def is_over(run: RunDir, snapshot: Snapshot) -> bool:
    """Whether the job is gone, by Slurm, or by the run's own files where Slurm does not answer."""
    if snapshot.error is not None:
        return own_state(run)[0].is_final
    return snapshot.job.state.is_final if snapshot.job is not None else snapshot.searched


def waiting_reason(snapshot: Snapshot) -> str | None:
    """Return one line on why a job waits; None: unknown. Pure."""
    if snapshot.error is not None:
        return f"Slurm does not answer: {snapshot.error}"
    job = snapshot.job
    if job is None or job.state is not RunState.PENDING:
        return None
    expected = time.strftime(", expected to start at %H:%M on %Y-%m-%d", time.localtime(job.start)) if job.start else ""
    return f"waiting in the queue{f': {job.reason}' if job.reason else ''}{expected}"


def failure_record(run: RunDir, job: JobInfo | None) -> dict[str, Any]:
    """Return why the run failed, where no agent could write it: Slurm's state, the last event, the log's end."""
    event = last_event(run, "slurm_end", "slurm_requeue")
    message, advice = ENDINGS.get(job.native if job else "", ("", ""))
    log = process.last_log_lines(run.path / run_files.SLURM_LOG, TAIL_LINES)
    if any(re.search(NO_GPUS[0], line) for line in log):
        _, message, advice = NO_GPUS
    by_slurm = f"Slurm says {job.native} {job.reason}".strip() if job else ""
    return {
        "rank": None,
        "host": job.nodes if job else None,
        "exit_code": job.exit_code if job else None,
        "signal": None,
        "cause": job.native.lower() if job else "slurm",
        "message": message or event.get("reason") or by_slurm,
        "advice": [advice] if advice else [],
        "log_tail": log,
    }

"""Parse what Slurm's tools print about jobs. Pure.

squeue and sacct come in two forms: text with fields that we choose, which every version prints, and JSON. A state in
JSON is one word until Slurm 23.02 and a list of words since; numbers have become objects.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.rundir.state import RunState

STATES: dict[str, RunState] = {
    # waiting
    "PENDING": RunState.PENDING,
    "CONFIGURING": RunState.PENDING,
    "REQUEUED": RunState.PENDING,
    "REQUEUE_FED": RunState.PENDING,
    "REQUEUE_HOLD": RunState.PENDING,
    "SPECIAL_EXIT": RunState.PENDING,
    "RESV_DEL_HOLD": RunState.PENDING,
    "POWER_UP_NODE": RunState.PENDING,
    # on its nodes
    "RUNNING": RunState.RUNNING,
    "COMPLETING": RunState.RUNNING,
    "SUSPENDED": RunState.RUNNING,
    "STOPPED": RunState.RUNNING,
    "SIGNALING": RunState.RUNNING,
    "RESIZING": RunState.RUNNING,
    "STAGE_OUT": RunState.RUNNING,
    "EXPEDITING": RunState.RUNNING,
    "UPDATE_DB": RunState.RUNNING,
    # over
    "COMPLETED": RunState.SUCCEEDED,
    "CANCELLED": RunState.CANCELLED,
    "FAILED": RunState.FAILED,
    "TIMEOUT": RunState.FAILED,
    "NODE_FAIL": RunState.FAILED,
    "OUT_OF_MEMORY": RunState.FAILED,
    "BOOT_FAIL": RunState.FAILED,
    "DEADLINE": RunState.FAILED,
    "PREEMPTED": RunState.FAILED,
    "REVOKED": RunState.FAILED,
    "LAUNCH_FAILED": RunState.FAILED,
    "RECONFIG_FAIL": RunState.FAILED,
}
"""JOB STATE CODES of squeue(1) and sacct(1) -> ours. PREEMPTED and TIMEOUT: Slurm ended the job for good."""

LATEST = 1e11
"""Unix seconds after which no date can be printed."""
MOST_TASKS = 100_000
"""Elements of one array. Slurm's own limit is below that by default (MaxArraySize)."""
SQUEUE_FIELDS = "%i|%T|%S|%N|%r"
"""Job, state, (expected) start, nodes, reason. The reason is last because it is free text."""
SACCT_FIELDS = "JobID,State,Start,NodeList,ExitCode,Reason"


@dataclass(frozen=True)
class JobInfo:
    job_id: str
    """`123`, or `123_4` for an element of an array."""
    native: str
    """Slurm's state: RUNNING, NODE_FAIL, ..."""
    reason: str = ""
    """Why the job waits or ended; empty: Slurm gives no reason."""
    start: float | None = None
    """Unix seconds. For a waiting job the expected start, if the scheduler has one."""
    nodes: str = ""
    exit_code: int | None = None

    @property
    def state(self) -> RunState:
        return run_state(self.native)


def run_state(native: str) -> RunState:
    """Return our state for Slurm's; `CANCELLED by 1000` and `CANCELLED+` are CANCELLED.

    A state that is not in the table counts as RUNNING. A new state of a later Slurm must not end a run.
    """
    return STATES.get(state_word(native), RunState.RUNNING)


def state_word(native: Any) -> str:
    """Return the state from any of its forms: a word, a word with flags after it, or a list with the base first."""
    if isinstance(native, list):
        words = [str(item).upper() for item in native]
        # ["RUNNING", "COMPLETING"] still runs and ["PENDING", "REQUEUED"] waits: the base state is right in both.
        return words[0] if words else ""
    return re.split(r"[ +,]", str(native).strip().upper(), maxsplit=1)[0]


def parse_squeue(text: str) -> dict[str, JobInfo]:
    """Parse the output of `squeue --noheader --format=SQUEUE_FIELDS`: {job id: job}."""
    found: dict[str, JobInfo] = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 4)
        if len(fields) == 5:
            job_id, native, start, nodes, reason = fields
            info = JobInfo(job_id, state_word(native), _reason(reason), parse_time(start), nodes)
            found.update(_by_element(info))
    return found


def parse_sacct(text: str) -> dict[str, JobInfo]:
    """Parse the output of `sacct --allocations --noheader --parsable2 --format=SACCT_FIELDS`: {job id: job}."""
    found: dict[str, JobInfo] = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 5)
        if len(fields) == 6 and "." not in fields[0]:
            job_id, native, start, nodes, exit_code, reason = fields
            nodes = "" if nodes == "None assigned" else nodes
            word = exit_code.partition(":")[0]
            code = _number(word)
            info = JobInfo(job_id, state_word(native), _reason(reason), parse_time(start), nodes, code)
            found.update(_by_element(info))
    return found


def parse_json(text: str) -> dict[str, JobInfo]:
    """Parse the output of `squeue --json` or `sacct --json` of any version: {job id: job}. Raises ValueError."""
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deep") from error
    jobs = document.get("jobs") if isinstance(document, dict) else None
    if not isinstance(jobs, list):
        raise ValueError("the JSON has no list of jobs")
    found: dict[str, JobInfo] = {}
    for job in jobs:
        if isinstance(job, dict):
            found.update(_by_element(_job(job)))
    return found


def _job(job: Mapping[str, Any]) -> JobInfo:
    state = job.get("state")
    details = state if isinstance(state, dict) else {}  # sacct's; squeue has job_state and state_reason
    array = job.get("array") if isinstance(job.get("array"), dict) else {}
    assert isinstance(array, dict)
    parent = _number(job.get("array_job_id", array.get("job_id")))
    task = _number(job.get("array_task_id", array.get("task_id")))
    tasks = job.get("array_task_string", array.get("task") if isinstance(array.get("task"), str) else "")
    if parent and task is not None:
        job_id = f"{parent}_{task}"
    elif parent and tasks:
        job_id = f"{parent}_[{tasks}]"
    else:
        job_id = str(_number(job.get("job_id")))
    times = job.get("time") if isinstance(job.get("time"), dict) else {}
    assert isinstance(times, dict)
    start = _number(job.get("start_time", times.get("start")))
    code = job.get("exit_code")
    return JobInfo(
        job_id,
        state_word(job.get("job_state", details.get("current", ""))),
        _reason(str(job.get("state_reason", details.get("reason")) or "")),
        float(start) if start and 0 < start < LATEST else None,
        str(job.get("nodes") or ""),
        _number(code.get("return_code")) if isinstance(code, dict) else None,
    )


def _number(value: Any) -> int | None:
    """Return 5 for 5, "5" and {"set": true, "infinite": false, "number": 5}; None for null and {"set": false}."""
    if isinstance(value, dict):
        return _number(value.get("number")) if value.get("set") and not value.get("infinite") else None
    if isinstance(value, str):
        return int(value) if re.fullmatch("[0-9]{1,15}", value) else None
    return value if isinstance(value, int) and abs(value) < 10**15 else None


def _reason(text: str) -> str:
    plain = text.strip().strip("()")
    return "" if plain in ("None", "N/A", "Unknown") else plain


def parse_time(text: str) -> float | None:
    """Return unix seconds for Slurm's local time `2026-11-23T23:48:33`; None for N/A, Unknown, None."""
    try:
        return time.mktime(time.strptime(text.strip()[:19], "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


def _by_element(info: JobInfo) -> Iterator[tuple[str, JobInfo]]:
    """Yield one entry per element of an array that still waits as one record, `16_[2-3,7%2]`."""
    for job_id in expand(info.job_id):
        yield job_id, JobInfo(job_id, info.native, info.reason, info.start, info.nodes, info.exit_code)


def expand(job_id: str) -> Iterable[str]:
    """Expand `16_[2-3,7%2]` to 16_2, 16_3, 16_7; return any other id alone."""
    parent, bracket, inside = job_id.partition("_[")
    if not bracket:
        return [job_id]
    ids: list[str] = []
    for part in inside.rstrip("]").partition("%")[0].split(","):
        numbers = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?", part.strip())
        if numbers:
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            tasks = range(first, last + 1, int(numbers[3] or 1) or 1)
            ids += [f"{parent}_{task}" for task in tasks[: MOST_TASKS - len(ids)]]
    return ids

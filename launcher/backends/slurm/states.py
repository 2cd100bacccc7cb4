"""What Slurm's tools print of jobs, as data. Pure: no process is started here.

squeue and sacct are read in two shapes: text of fields that we choose (every version has it), and JSON, whose states
were one word until Slurm 23.02 and are lists of words since (and whose numbers have become objects).
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
    # waits
    "PENDING": RunState.PENDING,
    "CONFIGURING": RunState.PENDING,
    "REQUEUED": RunState.PENDING,
    "REQUEUE_FED": RunState.PENDING,
    "REQUEUE_HOLD": RunState.PENDING,
    "SPECIAL_EXIT": RunState.PENDING,
    "RESV_DEL_HOLD": RunState.PENDING,
    "POWER_UP_NODE": RunState.PENDING,
    # holds its nodes
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
"""JOB STATE CODES of squeue(1) and sacct(1) -> ours. PREEMPTED and TIMEOUT: Slurm ended the job and queued no other."""

SQUEUE_FIELDS = "%i|%T|%S|%N|%r"
"""Job, state, (expected) start, nodes, reason: the reason last, it is free text."""
SACCT_FIELDS = "JobID,State,Start,NodeList,ExitCode,Reason"


@dataclass(frozen=True)
class JobInfo:
    job_id: str
    """`123`, or `123_4` for an element of an array."""
    native: str
    """Slurm's own word: RUNNING, NODE_FAIL, ..."""
    reason: str = ""
    """Why it waits or ended; empty where Slurm gives none."""
    start: float | None = None
    """Unix seconds; of a waiting job the expected start, if the scheduler has one."""
    nodes: str = ""
    exit_code: int | None = None

    @property
    def state(self) -> RunState:
        return run_state(self.native)


def run_state(native: str) -> RunState:
    """Our state for Slurm's; `CANCELLED by 1000` and `CANCELLED+` are CANCELLED. A word not in the table: RUNNING.

    A state of a later Slurm must not end a run in our books: only what is known to be final is final.
    """
    return STATES.get(word(native), RunState.RUNNING)


def word(native: Any) -> str:
    """The state among the shapes it comes in: a word, words with flags behind them, or a list with the base first."""
    if isinstance(native, list):
        words = [str(item).upper() for item in native]
        # ["RUNNING", "COMPLETING"] still runs, ["PENDING", "REQUEUED"] waits: the base state says so in both.
        return words[0] if words else ""
    return re.split(r"[ +,]", str(native).strip().upper(), maxsplit=1)[0]


def parse_squeue(text: str) -> dict[str, JobInfo]:
    """Jobs of `squeue --noheader --format=SQUEUE_FIELDS`, by id."""
    found: dict[str, JobInfo] = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 4)
        if len(fields) == 5:
            job_id, native, start, nodes, reason = fields
            info = JobInfo(job_id, word(native), _reason(reason), parse_time(start), nodes)
            found.update(_spread(info))
    return found


def parse_sacct(text: str) -> dict[str, JobInfo]:
    """Jobs of `sacct --allocations --noheader --parsable2 --format=SACCT_FIELDS`, by id."""
    found: dict[str, JobInfo] = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 5)
        if len(fields) == 6 and "." not in fields[0]:
            job_id, native, start, nodes, exit_code, reason = fields
            nodes = "" if nodes == "None assigned" else nodes
            code = exit_code.partition(":")[0]
            info = JobInfo(
                job_id, word(native), _reason(reason), parse_time(start), nodes, int(code) if code.isdigit() else None
            )
            found.update(_spread(info))
    return found


def parse_json(text: str) -> dict[str, JobInfo]:
    """Jobs of `squeue --json` or `sacct --json`, of old and new versions, by id. Raises ValueError."""
    document = json.loads(text)
    jobs = document.get("jobs") if isinstance(document, dict) else None
    if not isinstance(jobs, list):
        raise ValueError("no list of jobs in it")
    found: dict[str, JobInfo] = {}
    for job in jobs:
        found.update(_spread(_job(job)))
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
        word(job.get("job_state", details.get("current", ""))),
        _reason(str(job.get("state_reason", details.get("reason")) or "")),
        float(start) if start else None,
        str(job.get("nodes") or ""),
        _number(code.get("return_code")) if isinstance(code, dict) else None,
    )


def _number(value: Any) -> int | None:
    """5, {"set": true, "infinite": false, "number": 5} and "5" are 5; null and {"set": false, ...} are None."""
    if isinstance(value, dict):
        return _number(value.get("number")) if value.get("set") and not value.get("infinite") else None
    if isinstance(value, str):
        return int(value) if value.isdigit() else None
    return value if isinstance(value, int) else None


def _reason(text: str) -> str:
    plain = text.strip().strip("()")
    return "" if plain in ("None", "N/A", "Unknown") else plain


def parse_time(text: str) -> float | None:
    """Slurm's local time `2026-11-23T23:48:33` as unix seconds; None for N/A, Unknown, None."""
    try:
        return time.mktime(time.strptime(text.strip()[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _spread(info: JobInfo) -> Iterator[tuple[str, JobInfo]]:
    """One entry for each element of an array that still waits as one record, `16_[2-3,7%2]`."""
    for job_id in expand(info.job_id):
        yield job_id, JobInfo(job_id, info.native, info.reason, info.start, info.nodes, info.exit_code)


def expand(job_id: str) -> Iterable[str]:
    """`16_[2-3,7%2]` -> 16_2, 16_3, 16_7; any other id is itself."""
    parent, bracket, inside = job_id.partition("_[")
    if not bracket:
        return [job_id]
    ids = []
    for part in inside.rstrip("]").partition("%")[0].split(","):
        numbers = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip())
        if numbers:
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            ids += [f"{parent}_{task}" for task in range(first, last + 1, int(numbers[3] or 1))]
    return ids

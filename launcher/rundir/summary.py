"""How a run ended: its failure, its span, its smoke test. What it came to is in reading.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import first_failure, node_records

STARTS = ("submitted", "slurm_start", "agent_started")
ENDS = ("end", "slurm_end")
"""Events that begin and end a start of a run, or its part on a node."""
NEVER_RAN = ("not_started", "not_queued", "start_broken_off")
"""Causes of a run that its target refused to start."""
EXIT_USER = 2
"""Exit status of a rank for a user's mistake (train/errors.py)."""


def failure(run: RunDir) -> dict[str, Any] | None:
    """Why a run failed: the first failure of a rank, or else why it could not be started."""
    return failure_of(run, run.read_events())


def failure_of(run: RunDir, events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The same, of a run whose events are read already."""
    return first_failure(run) or _not_started(run, events)


def _not_started(run: RunDir, events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    starts = [event for event in events if event.get("event") in (*STARTS, "not_started")]
    last = starts[-1] if starts else {}
    if last.get("event") != "not_started":
        return _broken_off(run)
    what = "queued" if run.record.backend == "slurm" else "started"
    return {
        "rank": None,
        "exit_code": None,
        "signal": None,
        "cause": f"not_{what}",
        "message": f"the run was never {what}: {last.get('error')}",
        "advice": [*([last["hint"]] if last.get("hint") else []), f"zlaunch resume {run.run_id}"],
        "log_tail": [],
    }


def _broken_off(run: RunDir) -> dict[str, Any] | None:
    """The failure of a run whose start ended without a word, if no agent came up either."""
    if not run.run_json.exists() or run.record.submitted is not None or node_records(run):
        return None
    why = "the command that started it was killed, or could not write down on a full disk why it failed"
    return {
        "rank": None,
        "exit_code": None,
        "signal": None,
        "cause": "start_broken_off",
        "message": f"the start of the run was broken off: {why}",
        "advice": [f"check the disk for space, then: zlaunch resume {run.run_id}"],
        "log_tail": [],
    }


def last_hang(events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The event of the newest hang in the last start of a run: `message`, and `stacks` by place."""
    since = [event for event in events if event.get("event") in (*STARTS, "hang")]
    return since[-1] if since and since[-1]["event"] == "hang" else None


def refused_settings(run: RunDir) -> dict[str, Any] | None:
    """The failure of the last start, if the training program refused its settings before the first step."""
    found = first_failure(run) or {}
    if (found.get("exit_code"), found.get("cause")) != (EXIT_USER, "bad_configuration") or is_program(run):
        return None
    for event in reversed(run.read_events()):
        if (event.get("event"), event.get("name")) == ("phase", "train"):
            return None
        if event.get("event") == "agent_started":
            break
    return found


def is_program(run: RunDir) -> bool:
    """Whether the run is of a program of the user, not of the training program."""
    plan = run.read_plan()
    return "train" in plan and plan["train"] is None


def span(run: RunDir) -> tuple[float | None, float | None]:
    """(time of submission, time of the end or else of the last event), in unix seconds."""
    return span_of(run.read_events(), run.record)


def span_of(lines: Sequence[dict[str, Any]], record: RunRecord | None) -> tuple[float | None, float | None]:
    """The same, of a run whose events are read already."""
    events = [event for event in lines if "time" in event]
    times = [event["time"] for event in events]
    started = (record.submitted if record else None) or min(times, default=None)
    ends: list[float] = []
    for event in events:  # before 0.2.0 `zlaunch eval` added events after the end of a run
        if event.get("event") in STARTS:
            ends.clear()
        elif event.get("event") in ENDS:
            ends.append(event["time"])
    return started, max(ends or times, default=None)


def smoke_problems(run: RunDir) -> list[str]:
    """Why a finished smoke run did not pass; empty if it passed."""
    result = run.read_json(run.result_json)
    if not result:
        return ["the training wrote no result.json"]
    first, last, smallest = (result.get(key) for key in ("loss_first", "loss_last", "grad_norm_min"))
    problems = []
    if first is None or last is None or not last < first:
        problems.append(f"the loss did not fall: first {first}, last {last}")
    if not smallest or not smallest > 0:
        problems.append(f"the gradient norm of a step was {smallest}")
    if not result.get("adapter_reloads"):
        difference = result.get("adapter_difference")
        share = "" if difference is None else f": they differ by {difference:.2%}"
        problems.append(f"the saved adapter does not reload with the same logits{share}")
    return problems

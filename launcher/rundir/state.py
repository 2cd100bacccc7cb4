"""The state of a run, derived from the records that its agents write."""

from __future__ import annotations

import contextlib
import enum
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import RunNotFound
from launcher.machine.output import printable
from launcher.node import processes, run_files
from launcher.node.agent.causes import first_cause
from launcher.rundir import claims, jsonl, shapes
from launcher.rundir.directory import RunDir

Record = dict[str, Any]


class RunState(str, enum.Enum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    """Stopped on request; it can be resumed if a checkpoint was saved."""
    LOST = "LOST"
    """Its record says RUNNING, but no agent of it is alive."""

    @property
    def is_final(self) -> bool:
        return self not in (RunState.PENDING, RunState.RUNNING)


STATE_OF_NODE = {
    "RUNNING": RunState.RUNNING,
    "SUCCEEDED": RunState.SUCCEEDED,
    "FAILED": RunState.FAILED,
    "STOPPED": RunState.CANCELLED,
    "CANCELLED": RunState.CANCELLED,
}


SETTLED = 60.0
"""Seconds after its last sign of life in which an agent's last event may still be on its way here."""
CLOCK_STEP = 5.0
"""Seconds by which the time of day may be set back during a run."""
SILENT_AFTER = 30.0
"""Seconds without a heartbeat after which an agent on another machine counts as lost. It sends one every 5 s."""


def node_records(run: RunDir) -> dict[int, Record]:
    """{node rank: record} of the nodes whose agent has started, in order; unreadable files are left out."""
    found = {}
    for path in run.nodes_dir.glob("node-*.json"):
        with contextlib.suppress(FileNotFoundError, RunNotFound):
            record = shapes.decode(path, shapes.NodeRecord)
            found[record["node_rank"]] = record
    return dict(sorted(found.items()))


def is_local(record: Record) -> bool:
    """Whether the pids of the record are valid here: same machine, same boot, same pid namespace."""
    here = (socket.gethostname(), processes.boot_id(), processes.pid_namespace())
    return (record["host"], record["boot_id"], record.get("pid_namespace", here[2])) == here


def is_agent_alive(record: Record, *, now: float | None = None) -> bool:
    """Whether the agent of a RUNNING record, or the warden that cleans up after it, is alive as far as known here."""
    if is_local(record):
        warden = record.get("warden") or record
        return any(processes.is_same_process(p["pid"], p["start_time"], record["boot_id"]) for p in (record, warden))
    if record["host"] == socket.gethostname() and record["boot_id"] != processes.boot_id():
        return False
    return (time.time() if now is None else now) - float(record["heartbeat"]) < SILENT_AFTER


def node_state(record: Record, *, now: float | None = None) -> RunState:
    """State of one node; LOST if its record says RUNNING but its agent is not alive."""
    state = STATE_OF_NODE[record["state"]]
    return RunState.LOST if state is RunState.RUNNING and not is_agent_alive(record, now=now) else state


def derive_state(run: RunDir, *, now: float | None = None) -> RunState:
    """State of the run: RUNNING while any agent is alive, then what node 0's agent, the hub, recorded."""
    state = _by_records(run, now)
    # The agent may have written its final state and exited after its record was read and before it was looked for.
    return _by_records(run, now) if state is RunState.LOST else state


def _by_records(run: RunDir, now: float | None) -> RunState:
    states = {rank: node_state(record, now=now) for rank, record in node_records(run).items()}
    if not states:
        return _without_records(run)
    if RunState.RUNNING in states.values():
        return RunState.RUNNING
    return states[0] if 0 in states else max(states.values(), key=list(RunState).index)


def _without_records(run: RunDir) -> RunState:
    """State of a run of which no node record can be read. Raises StorageError if its directory is gone."""
    run.check_exists()
    if not damaged_records(run):
        return RunState.PENDING
    return RunState.RUNNING if processes.find_run_processes(run.run_id) else RunState.LOST


def is_start_broken_off(run: RunDir) -> bool:
    """Whether the last start of a run has ended without a word: its command was killed, or could not write on a full
    disk. Raises RunNotFound.

    What that command had begun may still come up. Where this command has claimed the run, no other one starts it.
    """
    if not run.run_json.exists() or run.record.submitted is not None:
        return False
    return run.is_claimed or not claims.is_being_started(run.path)


def damaged_records(run: RunDir) -> dict[Path, str]:
    """{file: what is wrong} of node records that cannot be read: a full disk or a crash has cut them off."""
    found = {}
    for path in sorted(run.nodes_dir.glob("node-*.json")):
        try:
            shapes.decode(path, shapes.NodeRecord)
        except FileNotFoundError:
            continue
        except RunNotFound as error:
            found[path] = str(error)
    return found


def damage(run: RunDir) -> list[str]:
    """What is wrong with the plan, node records, events and metrics of a run."""
    found = [f"{path.relative_to(run.path)}: {reason}" for path, reason in damaged_records(run).items()]
    plan = None
    with contextlib.suppress(RunNotFound):  # unreadable: every command says so
        plan = run.read_json(run.plan_json)
        if trouble := run.plan_trouble(plan):
            found.append(f"{run.plan_json.name}: {trouble}, so what the run trains is not known")
    for path, shape in ((run.events, shapes.Event), (run.metrics, shapes.Metric)):
        lines = jsonl.complete_lines(path)
        damaged = jsonl.unlike(lines, shape)
        if damaged:
            found.append(f"{path.name}: {len(damaged)} cut off, the first is line {damaged[0]}")
        elif jsonl.ends_torn(path) and not processes.find_run_processes(run.run_id):
            found.append(f"{path.name}: the last line is cut off")
        if text := (_not_understood if path == run.events else _without_loss)(lines, damaged):
            found.append(f"{path.name}: {text}")
        if path == run.metrics and (plan or {}).get("train") and (text := _half_told(lines)):
            found.append(f"{path.name}: {text}")
    if text := _missing(run):
        found.append(f"{run.events.name}: {text}")
    return found


def _not_understood(lines: Sequence[bytes], damaged: Sequence[int]) -> str:
    """What is sound in events.jsonl and yet means nothing to this version; empty: nothing."""
    found = sorted({*jsonl.unlike(lines, shapes.understood())} - {*damaged})
    if not found:
        return ""
    try:
        msgspec.json.decode(lines[found[0] - 1], type=shapes.understood())
        why = ""
    except msgspec.MsgspecError as error:
        why = f" ({printable(str(error))[:200]})"
    return f"{len(found)} not understood, the first is line {found[0]}{why}: damaged, or of another version or program"


def _without_loss(lines: Sequence[bytes], damaged: Sequence[int]) -> str:
    """Lines of metrics.jsonl that are in no curve; empty: none."""
    found = sorted({number for number, line in enumerate(lines, 1) if line and b'loss"' not in line} - {*damaged})
    return f"{len(found)} with neither loss nor eval_loss, the first is line {found[0]}" if found else ""


_OF_A_STEP = ("step", "epoch", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "peak_memory_bytes", "time")
"""What the training program writes beside the loss of each step, of this version and of 0.1.0."""


def _half_told(lines: Sequence[bytes]) -> str:
    """What the line of the last step lacks, which commands show; empty: nothing. Programs of users write their own."""
    number = next((number for number in range(len(lines), 0, -1) if b'"loss"' in lines[number - 1]), 0)
    lacking = [name for name in _OF_A_STEP if number and f'"{name}"'.encode() not in lines[number - 1]]
    return f"line {number} lacks {', '.join(lacking)}" if lacking else ""


def _missing(run: RunDir) -> str:
    """What the records of the nodes say and no event does; empty: nothing.

    An agent writes its record before its event, and both may come from another machine.
    """
    try:
        events = run.read_events()
    except RunNotFound:
        return ""
    for node, record in node_records(run).items():
        begun = (record.get("started") or 0.0) - CLOCK_STEP
        told = {event.get("event") for event in events if event.get("node") == node and event.get("time", 0) >= begun}
        missed = _untold(node, record, told)
        settled = is_local(record) or time.time() - record["heartbeat"] > SETTLED
        if missed and settled and not processes.find_run_processes(run.run_id):
            return missed
    return ""


def _untold(node: int, record: Mapping[str, Any], told: set[Any]) -> str:
    if record.get("ranks") and "ranks_started" not in told:
        return f"no line says that the ranks of node {node} were started"
    if record["state"] != "RUNNING" and "end" not in told:
        return f"no line says that node {node} ended"
    return ""


def _damage(run: RunDir) -> Record | None:
    """The failure of a run whose record is damaged."""
    for path, reason in damaged_records(run).items():
        why = reason.removeprefix(f"cannot read {path}: ")
        text = f"{path} is damaged: {path.stat().st_size} bytes, {why}"
        return {
            "rank": None, "node_rank": None, "host": None, "exit_code": None, "signal": None,
            "cause": "damaged_record", "message": f"{text}, so how the run ended there is not known",
            "advice": [f"check the disk for space and errors, then: zlaunch resume {run.run_id}"], "log_tail": [],
        }  # fmt: skip
    return None


def first_failure(run: RunDir) -> dict[str, Any] | None:
    """The failure that caused the others, or None. If no agent could write one, what Slurm said of the job."""
    found = first_cause(record["failure"] for record in node_records(run).values() if record.get("failure"))
    with contextlib.suppress(FileNotFoundError):
        found = found or shapes.decode(run.path / run_files.SLURM_ERROR, shapes.Failure)
    return found or _damage(run)


def raise_if_cancelled(run: RunDir) -> None:
    """Raise KeyboardInterrupt, like a Ctrl-C here, if `zlaunch cancel` has cancelled a run during its start."""
    if run.run_json.exists() and run.record.state == RunState.CANCELLED.value:
        raise KeyboardInterrupt

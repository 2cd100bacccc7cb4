"""The shapes of the files of a run: what the launcher uses of them, with types and ranges.

Disks, copies, other programs and other versions damage files. A file of another shape is an error that names it; a
command never computes with what it does not understand. Fields that no shape names are left alone.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from launcher.errors import RunNotFound

NEWEST = 1
"""The `schema` of every file that this version writes."""
LARGEST = 64 << 20
"""Bytes of a JSON file of a run, at most."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
"""Also a time since 1970: 1e11 is in the year 5138, and the C library converts it."""


class Process(msgspec.Struct):
    pid: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    start_time: Count


class Rank(msgspec.Struct):
    rank: Count
    local_rank: Count | None = None
    pid: Count | None = None
    start_time: Count | None = None
    exit_code: int | None = None
    signal: int | None = None


class GpuRow(msgspec.Struct):
    """The GPU of a rank at the last sign of life (launcher/node/gpu_load.py)."""

    local_rank: Count
    used_bytes: Count
    total_bytes: Count
    use: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None


class Stack(msgspec.Struct):
    """Where some ranks of a hang stood (launcher/node/hangs.py)."""

    ranks: list[Count] | None = None
    hosts: list[str] | None = None
    frames: list[str] | None = None


class Failure(msgspec.Struct):
    cause: str
    rank: Count | None = None
    node_rank: Count | None = None
    host: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    message: str | None = None
    advice: list[str] | None = None
    log_tail: list[str] | None = None
    stacks: list[Stack] | None = None


class NodeRecord(Process):
    """nodes/node-<r>.json"""

    node_rank: Count
    host: str
    boot_id: str
    state: Literal["RUNNING", "SUCCEEDED", "FAILED", "STOPPED", "CANCELLED"]
    heartbeat: Seconds
    started: Seconds | None = None
    ranks: list[Rank] = []
    warden: Process | None = None
    pid_namespace: str | None = None
    restarts: Count | None = None
    exit_code: int | None = None
    failure: Failure | None = None
    gpus: list[GpuRow] = []
    gpu_trouble: str | None = None
    schema: int = 1


class Scores(msgspec.Struct):
    loss: float | None = None
    records: Count | None = None
    accuracy: float | None = None
    tasks: dict[str, dict[str, Any]] | None = None


class Evaluations(msgspec.Struct):
    before: Scores | None = None
    after: Scores | None = None


class Result(msgspec.Struct):
    """result.json"""

    schema: int = 1
    loss_first: float | None = None
    loss_last: float | None = None
    grad_norm_min: float | None = None
    adapter_reloads: bool | None = None
    eval: Evaluations | None = None
    samples: list[dict[str, Any]] | None = None


class PlannedNode(msgspec.Struct):
    node_rank: Count
    procs: Count
    first_rank: Count


class Launch(msgspec.Struct):
    world_size: Count | msgspec.UnsetType = msgspec.UNSET
    nodes: list[PlannedNode] = []
    python: str | msgspec.UnsetType = msgspec.UNSET
    device: str | msgspec.UnsetType = msgspec.UNSET
    stop_deadline: Seconds | msgspec.UnsetType = msgspec.UNSET
    kill_after: Seconds | msgspec.UnsetType = msgspec.UNSET


class PlannedSteps(msgspec.Struct):
    epochs: float | None = None
    max_steps: Count | None = None


class PlannedEval(msgspec.Struct):
    after: bool = True


class PlannedTraining(msgspec.Struct):
    """Of `train` in plan.json what views read; `train.config` is its whole schema"""

    predicted_peak_bytes: float | None = None
    predicted_tokens_per_second: float | None = None
    train: PlannedSteps | None = None
    eval: PlannedEval | None = None


class Plan(msgspec.Struct):
    """plan.json"""

    schema: int = 1
    launch: Launch | msgspec.UnsetType = msgspec.UNSET
    backend: str | msgspec.UnsetType = msgspec.UNSET
    train: PlannedTraining | None = None
    slurm: dict[str, Any] | None = None


class Steps(msgspec.Struct):
    global_batch_size: Count


class Training(msgspec.Struct):
    """train.json: `train.config` is its whole schema"""

    schema: int = 1
    train: Steps | msgspec.UnsetType = msgspec.UNSET


class Metric(msgspec.Struct):
    """A line of metrics.jsonl"""

    step: Count
    loss: float | None = None
    eval_loss: float | None = None
    epoch: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: float | None = None
    time: Seconds | None = None
    records: Count | None = None
    """Of the held-out loss: on how many records; None: on all."""
    seconds: Seconds | None = None


class Event(msgspec.Struct):
    """A line of events.jsonl, with the fields that the launcher computes with or shows."""

    time: Seconds | msgspec.UnsetType = msgspec.UNSET
    event: str | msgspec.UnsetType = msgspec.UNSET
    name: str | None = None
    step: Count | None = None
    total_steps: Count | None = None
    unit: str | None = None
    done: Count | None = None
    total: Count | None = None
    rank: Count | None = None
    node: Count | None = None
    peak_bytes: Count | None = None
    capacity_bytes: Count | None = None
    loss: float | None = None
    ids: list[str] | None = None
    stacks: list[Stack] | None = None
    hint: str | None = None


PhaseName = Literal["model", "adapter", "data", "evaluate_before", "train", "evaluate_after", "save"]
EndState = Literal["SUCCEEDED", "FAILED", "STOPPED", "CANCELLED"]
EVENTS: dict[str, dict[str, Any]] = {
    "rendered": {},
    "submitted": {"backend": str, "ids": list[str]},
    "not_started": {"error": str},
    "slurm_submit": {},
    "slurm_start": {"reason": str},
    "slurm_requeue": {"reason": str},
    "slurm_end": {"reason": str},
    "signal": {"reason": str},
    "agent_started": {"node": Count, "host": str},
    "ranks_started": {"node": Count, "ranks": list[Count], "attempt": Count},
    "rank_exit": {"node": Count, "rank": Count},
    "restart": {"node": Count, "count": Count, "reason": str},
    "end": {"node": Count, "state": EndState},
    "failure": {"cause": str, "message": str},
    "hang": {"message": str},
    "node_lost": {"lost": Count, "reason": str},
    "request": {"request": str},
    "notice": {"kind": str, "to": str, "sent": bool},
    "note": {"text": str},
    "warning": {"text": str},
    "tracker": {"tracker": str, "url": str},
    "checkpoint_moved": {"to": str},
    "checkpoint_damaged": {"checkpoint": str, "reason": str},
    "phase": {"name": PhaseName},
    "progress": {"name": PhaseName, "unit": str, "done": Count},
    "engine": {"engine": str, "reason": str},
    "convert": {"message": str},
    "data": {"part": str},
    "steps": {"total_steps": Count},
    "resumed": {"step": Count},
    "length_changed": {"steps": Count},
    "data_changed": {},
    "loss_schedule": {"every": Count},
    "evaluation": {"step": Count},
    "checkpoint": {"step": Count},
    "best": {"step": Count | None},
    "early_stopping": {"step": Count},
    "router_loss": {},
    "memory": {"rank": Count, "peak_bytes": Count},
}
"""{event: {field without which it says nothing: its type}}, of this version and of 0.1.0. Each also has a `time`."""


@functools.cache
def understood() -> Any:
    """The shape of every line of events.jsonl that this version understands."""
    kinds: list[Any] = [
        msgspec.defstruct(f"Event_{name}", [("time", Seconds), *fields.items()], tag_field="event", tag=name)
        for name, fields in EVENTS.items()
    ]
    return functools.reduce(lambda one, other: one | other, kinds)


OURS = (NodeRecord, Plan, Result, Training)
"""Files with a `schema` of this package; a checkpoint counts its own."""


def read_small(path: str, most_bytes: int = 1 << 16) -> bytes:
    """The start of a file. `list` reads thousands, and Path and file objects would take most of its time."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(handle, most_bytes)
    finally:
        os.close(handle)


def decode(path: Path, shape: Any = dict[str, Any]) -> dict[str, Any]:
    """The JSON object in a file of a run. Raises FileNotFoundError, and RunNotFound for a damaged file."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST)
        return checked(msgspec.json.decode(data, type=dict[str, Any]), shape, path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunNotFound(f"cannot read {path}: {error.strerror}", code="ZL-RUN-02") from error
    except RecursionError:
        raise RunNotFound(f"cannot read {path}: nested too deeply", code="ZL-RUN-02") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RunNotFound(f"cannot read {path}: {error}", code="ZL-RUN-02") from error


def checked(value: dict[str, Any], shape: Any, path: Path) -> dict[str, Any]:
    """The object itself, if it has this shape. Raises RunNotFound."""
    schema = value.get("schema", NEWEST)
    if shape in OURS and isinstance(schema, int) and schema > NEWEST:
        raise RunNotFound(
            f"{path} was written by a newer version of zlaunch (schema {schema})",
            hint="use that version for this run",
            code="ZL-RUN-02",
        )
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise RunNotFound(f"cannot read {path}: {error}", code="ZL-RUN-02") from None
    return value

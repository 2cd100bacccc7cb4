"""One picture of a run: everything that a terminal, JSON, a report page or a browser shows of it, as one value.

Types only; reading.py reads it from a run directory.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Count(Shown, frozen=True, kw_only=True):
    """How far a phase is, in its own unit: bytes, weights, records, steps."""

    unit: str
    done: int
    total: int | None = None


class Phase(Shown, frozen=True, kw_only=True):
    """A phase of this start of the run."""

    name: str
    """A key of timeline.PHASES or timeline.OTHER_PHASES."""
    text: str
    started: float | None = None
    """Unix time, like `ended`."""
    ended: float | None = None
    count: Count | None = None
    seconds_left: float | None = None
    """Of the phase, by its count."""


class Point(Shown, frozen=True, kw_only=True):
    """A step of the training, as metrics.jsonl has it."""

    step: int
    loss: float
    smoothed: float
    """The exponential moving average of the loss."""
    time: float | None = None
    epoch: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: float | None = None


class HeldOut(Shown, frozen=True, kw_only=True):
    """The loss on the held-out records after a step; step 0 is before the training."""

    step: int
    loss: float
    time: float | None = None
    records: int | None = None
    """On how many of the held-out records; None: on all."""
    seconds: float | None = None
    """What the measurement took."""


class Best(Shown, frozen=True, kw_only=True):
    """The measurement on data.eval that is the best so far."""

    step: int
    metric: str
    """loss, or a score of answers."""
    value: float
    records: int | None = None
    """On how many records."""


class Score(Shown, frozen=True, kw_only=True):
    """A measure of the answers to held-out records."""

    task: str | None
    """None: records of several tasks together, each record counted once."""
    over: tuple[str, ...]
    """The tasks whose records are averaged; empty: all records."""
    metric: str
    records: int | None
    before: float | None
    after: float


class Rank(Shown, frozen=True, kw_only=True):
    rank: int
    pid: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    peak_bytes: int | None = None
    """The most memory that its tensors have taken; on a CPU, that the process has taken."""
    capacity_bytes: int | None = None
    """Memory of its GPU."""
    gpu_use: int | None = None
    """Percent of the last seconds in which its GPU was at work."""
    gpu_bytes: int | None = None
    """Memory of its GPU that is taken now, by whomever."""


class Node(Shown, frozen=True, kw_only=True):
    node_rank: int
    host: str | None
    state: str | None
    heartbeat: float | None
    """Unix time of the agent's last sign of life."""
    restarts: int = 0
    gpu_trouble: str | None = None
    """Why the use of the GPUs is not known."""
    ranks: tuple[Rank, ...] = ()


class Event(Shown, frozen=True, kw_only=True):
    """A line of events.jsonl."""

    time: float | None
    event: str
    text: str | None
    """For people; None for what only programs read."""
    fields: dict[str, Any]
    """The line itself."""


class Verdict(Shown, frozen=True, kw_only=True):
    """What the training came to."""

    rule: str
    """Name of the rule: learned, overfits, ..."""
    tone: str
    """good | warning | bad | unknown"""
    line: str
    """One line: `learned: 4.72 to 1.69 on the held-out records`."""
    reason: str
    """Why the rule applies, and what to do."""


class Picture(Shown, frozen=True, kw_only=True):
    """A run at one moment. Numbers that are not known are None."""

    schema: int = 1
    run: str
    name: str | None
    state: str
    backend: str | None
    ids: tuple[str, ...]
    directory: str
    read_at: float
    created: float | None
    started: float | None
    """Unix time of the last submission."""
    ended: float | None
    """Unix time of the end, or of the last event."""
    seconds: float | None
    world_size: int | None
    device: str | None
    is_program: bool
    """A program of the user; there are no metrics, no result and no verdict."""

    phase: str
    phase_text: str
    count: Count | None
    """Of the phase."""
    seconds_left: float | None
    """Of the run from the first step on; before it, of the phase."""
    phases: tuple[Phase, ...]
    """Of this start, oldest first."""
    step: int | None
    total_steps: int | None
    resumed_from: int | None
    """Step of the checkpoint that this start continued from."""
    epoch: float | None

    loss: float | None
    """Of the last step."""
    loss_smoothed: float | None
    loss_first: float | None
    loss_last: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens: int | None
    tokens_per_second: float | None
    planned_tokens_per_second: float | None
    speed_share: float | None
    """Measured over planned speed."""
    planned_bytes: int | None
    """Memory of each rank, by the plan."""
    peak_bytes: int | None
    """The most that any rank has taken."""
    curve: tuple[Point, ...]
    """Every step of a short run; of a long one about a thousand places, the extremes kept."""
    held_out: tuple[HeldOut, ...]
    best: Best | None
    """None: measurements are not compared, or there is none."""
    adapter_step: int | None
    """The step that the adapter of a finished run is of; None: not known."""
    scores: tuple[Score, ...]

    nodes: tuple[Node, ...]
    restarts: int
    checkpoints: tuple[int, ...]
    """Steps of the complete checkpoints that are here."""
    events: tuple[Event, ...]
    adapter: str | None
    failure: dict[str, Any] | None
    """Of a run that failed: rank, host, cause, message, advice, log_tail."""
    verdict: Verdict | None
    next_steps: tuple[str, ...]
    """Commands that lead on from here."""

"""Read the picture of a run from its directory: its own, or the copy brought here from hosts or a login host.

Pure but for the files: nothing is asked of a backend, and the state comes in as an argument.
"""

from __future__ import annotations

import math
import shlex
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from launcher.node import run_files
from launcher.rundir import summary, timeline
from launcher.rundir.curve import Curves, Index, Metric
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.jsonl import read_jsonl
from launcher.rundir.picture import Best, Count, Event, HeldOut, Node, Phase, Picture, Point, Rank, Score, Verdict
from launcher.rundir.state import RunState, node_records
from launcher.rundir.verdict import Answer, Facts, judge

RECENT = 0.1
"""Share of the steps so far, the newest, that the time left is derived from."""
FEWEST = 20
"""Steps that the time left is derived from at least, if there are so many."""
STEPPING = ("train", "evaluate_after", "save", "ended")
"""Phases with steps of this start behind them."""


class Reader:
    """Reads one run again and again; of metrics and events only what is new."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._curves = Curves(run.metrics)
        self._events: list[dict[str, Any]] = []
        self._seen: tuple[int, ...] = ()

    def read(self, state: RunState, *, now: float | None = None) -> Picture:
        """The run as its directory shows it now; `state` is its backend's answer. Raises RunNotFound if its files are
        damaged."""
        files = _Files(self.run, state, self._curves.read(), self._read_events(), time.time() if now is None else now)
        return draw(files)

    def _read_events(self) -> list[dict[str, Any]]:
        """The events, read again if the file has changed: a copy from a cluster is replaced as a whole."""
        try:
            status = self.run.events.stat()
        except OSError:
            return []
        seen = (status.st_size, status.st_mtime_ns, status.st_ino)
        if seen != self._seen:
            self._events, self._seen = self.run.read_events(), seen
        return self._events


def read(run: RunDir, state: RunState, *, now: float | None = None) -> Picture:
    """The picture of a run. Raises RunNotFound if its files are damaged."""
    return Reader(run).read(state, now=now)


def summarize(run: RunDir, state: RunState) -> dict[str, Any]:
    """The JSON object about a run on one line: its picture without what grows with its length."""
    found: dict[str, Any] = msgspec.to_builtins(read(run, state))
    return {name: value for name, value in found.items() if name not in ("curve", "events")}


@dataclass
class _Files:
    """The files of a run, each read once."""

    run: RunDir
    state: RunState
    index: Index
    events: Sequence[dict[str, Any]]
    now: float

    @cached_property
    def record(self) -> RunRecord | None:
        return self.run.record if self.run.run_json.exists() else None

    @cached_property
    def written_plan(self) -> dict[str, Any] | None:
        return self.run.read_json(self.run.plan_json)

    @property
    def plan(self) -> dict[str, Any]:
        return self.written_plan or {}

    @cached_property
    def result(self) -> dict[str, Any]:
        return self.run.read_json(self.run.result_json) or {}

    @cached_property
    def nodes(self) -> list[dict[str, Any]]:
        return list(node_records(self.run).values())

    @cached_property
    def start(self) -> list[dict[str, Any]]:
        """Events of the last start."""
        return timeline.last_start(self.events)

    @cached_property
    def is_program(self) -> bool:
        return "train" in self.plan and self.plan["train"] is None

    @cached_property
    def train(self) -> dict[str, Any]:
        """The configuration of the training program."""
        return self.plan.get("train") or {}

    @cached_property
    def phases(self) -> list[Phase]:
        return timeline.phases_of(
            self.start,
            self.state,
            rendered=self.record is None,
            program=self.is_program,
            ranks=self.state is not RunState.PENDING and any(record.get("ranks") for record in self.nodes),
            now=self.now,
        )


def draw(files: _Files) -> Picture:
    """The picture of what the files hold. Pure."""
    last = _last(files.index)
    nodes, numbers, held_out = _nodes(files, last), _numbers_of(files, last), _held_out(files)
    scores = scores_of(files.result.get("eval") or {})
    is_training = not (files.is_program or files.run.plan_trouble(files.written_plan))
    verdict = judge(_facts(files, numbers["curve"], held_out, scores)) if is_training else None
    return Picture(
        **_identity(files),
        **_progress(files, last),
        **numbers,
        nodes=nodes,
        planned_bytes=files.train.get("predicted_peak_bytes"),
        peak_bytes=max((rank.peak_bytes or 0 for node in nodes for rank in node.ranks), default=0) or None,
        held_out=held_out,
        best=_best(files),
        adapter_step=_adapter_step(files),
        scores=scores,
        restarts=max((node.restarts for node in nodes), default=0),
        checkpoints=tuple(files.run.checkpoint_steps()),
        events=tuple(
            Event(time=line.get("time"), event=str(line.get("event")), text=timeline.text_of(line), fields=line)
            for line in files.events
        ),
        failure=summary.failure_of(files.run, files.events) if files.state in _FAILED else None,
        verdict=verdict,
        next_steps=_next_steps(files, verdict),
    )


def _identity(files: _Files) -> dict[str, Any]:
    """Which run it is, where, and when."""
    record, plan = files.record, files.plan
    launch = plan.get("launch") or {}
    started, ended = summary.span_of(files.events, record)
    adapter = files.run.adapter if (files.run.adapter / "adapter_config.json").exists() else None
    return {
        "run": files.run.run_id,
        "name": record.name if record else plan.get("name"),
        "state": files.state.value,
        "backend": record.backend if record else plan.get("backend"),
        "ids": record.ids if record else (),
        "directory": str(files.run.path),
        "read_at": files.now,
        "created": record.created if record else None,
        "started": started,
        "ended": ended,
        "seconds": round(ended - started, 3) if started and ended else None,
        "world_size": launch.get("world_size"),
        "device": launch.get("device"),
        "is_program": files.is_program,
        "adapter": str(adapter) if adapter else None,
    }


def _progress(files: _Files, last: Metric | None) -> dict[str, Any]:
    """Where this start of the run stands."""
    count, left = _position(files, last)
    return {
        "phase": files.phases[-1].name,
        "phase_text": files.phases[-1].text,
        "count": count,
        "seconds_left": left,
        "phases": tuple(files.phases),
        "step": _step(files, last),
        "total_steps": _total(files),
        "resumed_from": _resumed(files),
    }


def _numbers_of(files: _Files, last: Metric | None) -> dict[str, Any]:
    """The training in numbers: of the last step, and of all steps."""
    curve, speed = _curve(files.index), _speed(files.index)
    planned = files.train.get("predicted_tokens_per_second")
    last = last or Metric()
    return {
        "epoch": last.epoch,
        "loss": last.loss,
        "loss_smoothed": curve[-1].smoothed if curve else None,
        "loss_first": files.result.get("loss_first", curve[0].loss if curve else None),
        "loss_last": files.result.get("loss_last", last.loss),
        "learning_rate": last.learning_rate,
        "grad_norm": last.grad_norm,
        "tokens": None if last.tokens is None else int(last.tokens),
        "tokens_per_second": speed,
        "planned_tokens_per_second": planned or None,
        "speed_share": speed / planned if speed and planned else None,
        "curve": curve,
    }


def _facts(files: _Files, curve: Sequence[Point], held_out: Sequence[HeldOut], scores: Sequence[Score]) -> Facts:
    data = [event for event in files.start if event.get("event") == "data" and event.get("part") == "eval"]
    ended = files.state is RunState.SUCCEEDED
    answers = _predictions(files.run) if ended else []
    rates = [point.learning_rate for point in curve if point.learning_rate is not None]
    failure = (summary.failure_of(files.run, files.events) or {}) if files.state in _FAILED else {}
    return Facts(
        ended=ended,
        curve=curve,
        held_out=held_out,
        scores=scores,
        after=(files.result.get("eval") or {}).get("after") or {},
        data=data[-1] if data else (files.result.get("data") or {}).get("eval") or {},
        answers=answers,
        learning_rate=max(rates, default=None),
        failure=str(failure.get("message") or ""),
        adapter_step=_adapter_step(files),
    )


def _predictions(run: RunDir) -> list[Answer]:
    lines = read_jsonl(run.path / run_files.PREDICTIONS)
    return [Answer(line.get("task"), str(line.get("expected")), str(line.get("given"))) for line in lines]


def _next_steps(files: _Files, verdict: Verdict | None) -> tuple[str, ...]:
    """Commands that lead on from where the run stands."""
    run, state = files.run.run_id, files.state
    if files.record is None:
        return (f"zlaunch {files.plan.get('backend')} {shlex.quote(str(files.run.job_yaml))}",)
    if not state.is_final:
        return (f"zlaunch logs -f {run}", f"zlaunch cancel {run}")
    if files.is_program:
        return (f"zlaunch logs {run}",)
    if state is not RunState.SUCCEEDED:
        return (f"zlaunch resume {run}", f"zlaunch logs {run}")
    steps = [f"zlaunch chat {run}", f"zlaunch export {run}"]
    if verdict is None or verdict.rule in LONGER_HELPS:
        numbers = files.train.get("train") or {}
        key = "max_steps" if numbers.get("max_steps") else "epochs"
        steps.append(f"zlaunch resume {run} --set train.{key}={2 * (numbers.get(key) or 1):g}")
    return tuple(steps)


LONGER_HELPS = ("learned", "learned little", "not learning", "no better than the majority class", "not judged")
"""Verdicts after which a longer training is worth a try."""
_FAILED = (RunState.FAILED, RunState.LOST)


def _last(index: Index) -> Metric | None:
    return index.loss.blocks[-1].points[-1] if index.loss.blocks else None


def _curve(index: Index) -> tuple[Point, ...]:
    return tuple(
        Point(
            step=line.step,
            loss=line.loss,
            smoothed=smoothed,
            time=line.time,
            epoch=line.epoch,
            learning_rate=line.learning_rate,
            grad_norm=line.grad_norm,
            tokens=line.tokens,
            tokens_per_second=line.tokens_per_second,
            peak_memory_bytes=line.peak_memory_bytes,
        )
        for line, smoothed in index.loss.smoothed()
        if line.loss is not None
    )


def _recent(index: Index) -> list[Metric]:
    """The newest lines, oldest first."""
    return [point for block in index.loss.blocks[-10:] for point in block.points]


def _speed(index: Index) -> float | None:
    """Tokens per second lately: a median, because a step that waited for a checkpoint says little."""
    known = [line.tokens_per_second for line in _recent(index) if line.tokens_per_second]
    return statistics.median(known) if known else None


def _step(files: _Files, last: Metric | None) -> int | None:
    """Steps behind the run. A start that has not come to its steps stands at its checkpoint."""
    if files.is_program:
        return None
    if files.phases[-1].name in STEPPING or _in_this_start(files, last):
        return last.step if last else None
    resumed = [event.get("step") for event in files.start if event.get("event") == "resumed"]
    steps = resumed or files.run.checkpoint_steps()
    return steps[-1] if steps else 0


def _in_this_start(files: _Files, line: Metric | None) -> bool:
    begun = next((e.get("time") for e in files.start if e.get("event") == "phase" and e.get("name") == "train"), None)
    return line is not None and begun is not None and (line.time or 0.0) >= begun


def _total(files: _Files) -> int | None:
    """Optimizer steps of the run, as this start reports them, else by the job."""
    for events in (files.start, files.events):
        for event in reversed(events):
            if event.get("total_steps"):
                return int(event["total_steps"])
    steps = (files.train.get("train") or {}).get("max_steps")
    return int(steps) if steps else None


def _position(files: _Files, last: Metric | None) -> tuple[Count | None, float | None]:
    """(count of the phase, seconds left)."""
    phase, total = files.phases[-1], _total(files)
    if phase.name != "train" or total is None:
        return phase.count, phase.seconds_left
    step = _step(files, last) or 0
    count = Count(unit="steps", done=step, total=total)
    if files.state.is_final or not _in_this_start(files, last):
        return count, None
    pace = _seconds_per_step(files, phase.started)
    if pace is None or last is None:
        return count, None
    idle = min(files.now - (last.time or files.now), 2 * pace)
    return count, max(0.0, (total - step) * pace - max(0.0, idle)) + _evaluation_seconds(files)


def _seconds_per_step(files: _Files, begun: float | None) -> float | None:
    """Over the newest steps of this start, pauses for checkpoints and evaluations included."""
    lines = [
        point
        for block in files.index.loss.blocks
        for point in block.points
        if point.time is not None and begun is not None and point.time >= begun
    ]
    if not lines:
        return None
    last = lines[-1]
    wanted = min(last.step - FEWEST, last.step * (1 - RECENT))
    first = next((line for line in reversed(lines) if line.step <= wanted), lines[0])
    if last.step > first.step:
        return (last.time - first.time) / (last.step - first.step)  # type: ignore[operator]
    steps = last.step - (_resumed(files) or 0)
    return (last.time - begun) / steps if steps > 0 else None  # type: ignore[operator]


def _resumed(files: _Files) -> int | None:
    return next((event.get("step") for event in reversed(files.start) if event.get("event") == "resumed"), None)


def _evaluation_seconds(files: _Files) -> float:
    """Of the evaluation to come after the training, if the one before it took as long as that."""
    if not (files.train.get("eval") or {}).get("after", True):
        return 0.0
    before = [phase for phase in files.phases if phase.name == "evaluate_before" and phase.started and phase.ended]
    return sum((phase.ended or 0.0) - (phase.started or 0.0) for phase in before)


def _best(files: _Files) -> Best | None:
    """The best measurement. A resumed run says first what it goes on from, so the last event holds."""
    said = [event for event in files.events if event.get("event") == "best"]
    step, value = (said[-1].get("step"), said[-1].get("value")) if said else (None, None)
    if not isinstance(step, int) or not isinstance(value, (int, float)):
        return None
    records = said[-1].get("records")
    return Best(
        step=step,
        metric=str(said[-1].get("metric")),
        value=float(value),
        records=records if isinstance(records, int) else None,
    )


def _adapter_step(files: _Files) -> int | None:
    step = files.result.get("adapter_step")
    return step if isinstance(step, int) else None


def _held_out(files: _Files) -> tuple[HeldOut, ...]:
    """The losses on the held-out records: those during the training, and those of the evaluations around it."""
    found = {
        (point.step, point.records): HeldOut(
            step=point.step, loss=point.eval_loss, time=point.time, records=point.records, seconds=point.seconds
        )
        for block in files.index.held_out.blocks
        for point in block.points
        if point.eval_loss is not None
    }
    around = [event for event in files.events if event.get("event") == "evaluation"]
    scores = files.result.get("eval") or {}
    around += [
        {"step": step, **(scores.get(when) or {})}
        for when, step in (("before", 0), ("after", files.result.get("adapter_step", files.result.get("steps"))))
    ]
    for event in around:
        step, loss = event.get("step"), event.get("loss")
        if isinstance(step, int) and isinstance(loss, (int, float)) and (step, None) not in found:
            found[step, None] = HeldOut(step=step, loss=float(loss), time=event.get("time"))
    return tuple(sorted(found.values(), key=lambda point: (point.step, point.records or math.inf)))


def _nodes(files: _Files, last: Metric | None) -> tuple[Node, ...]:
    """The nodes by their agents' records, with what each rank said of its memory."""
    memory = {event.get("rank"): event for event in files.start if event.get("event") == "memory"}
    if last is not None and last.peak_memory_bytes and _in_this_start(files, last):
        reported = (memory.get(0) or {}).get("peak_bytes") or 0
        memory[0] = {**(memory.get(0) or {}), "peak_bytes": max(reported, int(last.peak_memory_bytes))}
    return tuple(
        Node(
            node_rank=record["node_rank"],
            host=record.get("host"),
            state=record.get("state"),
            heartbeat=record.get("heartbeat"),
            restarts=record.get("restarts") or 0,
            gpu_trouble=record.get("gpu_trouble"),
            ranks=tuple(
                _rank(row, memory.get(row.get("rank")) or {}, gpus.get(row.get("local_rank"), {}))
                for row in record.get("ranks") or ()
            ),
        )
        for record in files.nodes
        for gpus in [{gpu["local_rank"]: gpu for gpu in record.get("gpus") or ()}]
    )


def _rank(row: dict[str, Any], memory: dict[str, Any], gpu: dict[str, Any]) -> Rank:
    return Rank(
        rank=int(row.get("rank") or 0),
        pid=row.get("pid"),
        exit_code=row.get("exit_code"),
        signal=row.get("signal"),
        peak_bytes=memory.get("peak_bytes"),
        capacity_bytes=memory.get("capacity_bytes") or gpu.get("total_bytes"),
        gpu_use=gpu.get("use"),
        gpu_bytes=gpu.get("used_bytes"),
    )


def scores_of(evaluation: dict[str, Any]) -> tuple[Score, ...]:
    """The scores of `eval` in result.json, by task and then of all records."""
    before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
    tasks_before, tasks_after = before.get("tasks") or {}, after.get("tasks") or {}
    own = ("records", "tasks", "loss", "unended")
    found = [
        _score(name, metric, new.get("records"), (tasks_before.get(name) or {}).get(metric), value)
        for name, new in tasks_after.items()
        for metric, value in _numbers(new.items(), own)
    ]
    everything = [*_numbers(after.items(), own), *_numbers([("loss", after.get("loss"))], ())]
    for name, value in everything:
        over = () if name in ("accuracy", "loss") else tuple(task for task, new in tasks_after.items() if name in new)
        records = sum(tasks_after[task].get("records") or 0 for task in over) if over else after.get("records")
        if over == tuple(tasks_after) and records == after.get("records"):
            over = ()
        found.append(_score(None, name, records, before.get(name), value, over))
    return tuple(found)


def _numbers(items: Iterable[tuple[str, Any]], without: Sequence[str]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in items if name not in without and isinstance(value, (int, float))]


def _score(task: str | None, metric: str, records: Any, before: Any, after: float, over: tuple[str, ...] = ()) -> Score:
    old = float(before) if isinstance(before, (int, float)) else None
    return Score(task=task, over=over, metric=metric, records=records, before=old, after=float(after))

"""The events of a run: its last start, the phases of that start, and lines for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from launcher.rundir.picture import Count, Phase
from launcher.rundir.state import RunState

Line = dict[str, Any]

PHASES = {
    "model": "loading the model",
    "adapter": "adding the LoRA adapter",
    "data": "tokenizing the records",
    "evaluate_before": "evaluating the untrained model",
    "train": "training",
    "evaluate_after": "evaluating the trained model",
    "save": "saving the adapter",
}
"""{phase of the training program: its words for people}, in order."""
OTHER_PHASES = {
    "rendered": "not started",
    "queued": "waiting to start",
    "starting": "starting the ranks",
    "program": "running the program",
    "ended": "ended",
}
"""The same of a run that the training program says nothing of: before it, after it, without it."""

BEGINNINGS = ("slurm_submit", "slurm_start", "ranks_started", "restart")
"""Events after which nothing of the earlier start or attempt is true any more."""
ENDINGS = ("end", "slurm_end", "slurm_requeue")


def last_start(events: Sequence[Line]) -> list[Line]:
    """The events since the run was started, resumed, requeued or restarted last."""
    begin, ended = 0, False
    for place, event in enumerate(events):
        name = event.get("event")
        if name in ENDINGS:
            ended = True
        elif (name in BEGINNINGS and not event.get("node")) or (ended and name in ("submitted", "agent_started")):
            begin, ended = place, False
    return list(events[begin:])


def phases_of(
    start: Sequence[Line], state: RunState, *, rendered: bool, program: bool, ranks: bool, now: float
) -> list[Phase]:
    """The phases of a start, oldest first; the last one is where the run stands. Never empty.

    `rendered`: the run was never submitted. `program`: it runs a program of the user. `ranks`: a node's record says
    that ranks were started, where a full disk or a damaged line has lost that event.
    """
    found = _reported(start)
    if not found:
        begun = start[0].get("time") if start else None
        ran = ranks or any(event.get("event") == "ranks_started" for event in start)
        started = ran or state is RunState.RUNNING
        name = "rendered" if rendered else "program" if program and ran else "starting" if started else "queued"
        found.append((name, begun, None))
    if state.is_final:
        ends = [event["time"] for event in start if event.get("event") in ENDINGS and "time" in event]
        found.append(("ended", ends[-1] if ends else None, None))
    following = [*(begun for _, begun, _ in found[1:]), None]
    return [_phase(name, begun, end, count, now) for (name, begun, count), end in zip(found, following, strict=True)]


def _reported(start: Sequence[Line]) -> list[tuple[str, float | None, Count | None]]:
    """(name, begin, newest count) of the phases that the training program has reported."""
    found: list[tuple[str, float | None]] = []
    counts: dict[str, Count] = {}
    for event in start:
        if event.get("event") == "progress":  # tokens are counted before their phase begins, while the model is loaded
            counts[str(event.get("name"))] = _count(event)
        elif event.get("event") == "phase":
            found.append((str(event.get("name")), event.get("time")))
    return [(name, begun, counts.get(name)) for name, begun in found]


def _count(event: Line) -> Count:
    total = event.get("total")
    return Count(unit=str(event.get("unit")), done=int(event.get("done") or 0), total=int(total) if total else None)


def _phase(name: str, begun: float | None, end: float | None, count: Count | None, now: float) -> Phase:
    left = None
    if end is None and count and count.total and count.done and begun:
        left = max(0.0, (now - begun) * (count.total / count.done - 1))
    text = PHASES.get(name) or OTHER_PHASES.get(name, name)
    return Phase(name=name, text=text, started=begun, ended=end, count=count, seconds_left=left)


def text_of(event: Line) -> str | None:
    """The line about an event for people; None: only programs read it."""
    name = event.get("event")
    write = _TEXTS.get(str(name))
    return write(event) if write else None


def _by(event: Line) -> str:
    return f" by {event['by']}" if event.get("by") else ""


def _ended(event: Line) -> str:
    node = f"node {event['node']}" if event.get("node") is not None else "the job"
    reason = f": {event['reason']}" if event.get("reason") else ""
    return f"{node} ended{' ' + str(event['state']) if event.get('state') else ''}{reason}"


def _checkpoint(event: Line) -> str:
    step = event.get("step")
    return "checkpoint of a step that was not recorded" if step is None else f"checkpoint of step {step}"


def _evaluation(event: Line) -> str:
    scores = [f"{key} {event[key]:.3f}" for key in ("loss", "accuracy") if isinstance(event.get(key), (int, float))]
    return f"held-out records after step {event.get('step')}: {', '.join(scores)}"


def _notice(event: Line) -> str:
    what = f"notice of the {event.get('kind')} to {event.get('to')}"
    return what if event.get("sent") else f"warning: {what} was not sent: {event.get('reason')}"


_TEXTS: dict[str, Callable[[Line], str]] = {
    "submitted": lambda e: f"submitted to {e.get('backend')} ({' '.join(map(str, e.get('ids') or ()))})",
    "not_started": lambda e: f"not started: {e.get('error')}",
    "agent_started": lambda e: f"node {e.get('node')} is up on {e.get('host')}",
    "slurm_start": lambda e: f"the job started{': ' + str(e['reason']) if e.get('reason') else ''}",
    "slurm_requeue": lambda e: f"queued again{': ' + str(e['reason']) if e.get('reason') else ''}",
    "slurm_end": _ended,
    "end": _ended,
    "phase": lambda e: PHASES.get(str(e.get("name")), str(e.get("name"))),
    "resumed": lambda e: f"resumed from the {_checkpoint(e)}",
    "checkpoint": _checkpoint,
    "checkpoint_damaged": lambda e: f"the {e.get('checkpoint')} is damaged and not used: {e.get('reason')}",
    "checkpoint_moved": lambda e: f"the {_checkpoint(e)} was copied to {e.get('to')}",
    "length_changed": lambda e: (
        f"{e.get('steps')} steps in total instead of {e.get('planned')}; the learning rate follows"
    ),
    "early_stopping": lambda e: (
        f"the training ends early, after step {e.get('step')} of {e.get('total_steps')}: "
        f"{e.get('patience')} measurements in a row were no better than that of step {e.get('best')}"
    ),
    "data_changed": lambda e: "data.train has changed since the checkpoint",
    "restart": lambda e: f"restart {e.get('count')}: {e.get('reason')}",
    "failure": lambda e: f"failure ({e.get('cause')}): {e.get('message')}",
    "hang": lambda e: f"hang: {e.get('message')}",
    "node_lost": lambda e: f"node {e.get('lost')} ({e.get('host')}) is lost: {e.get('reason')}",
    "request": lambda e: f"{e.get('request')} requested{_by(e)}",
    "tracker": lambda e: f"{e.get('tracker')}: {e.get('url')}",
    "notice": _notice,
    "note": lambda e: str(e.get("text")),
    "warning": lambda e: f"warning: {e.get('text')}",
    "engine": lambda e: f"engine {e.get('engine')}: {e.get('reason')}",
    "convert": lambda e: str(e.get("message")),
    "evaluation": _evaluation,
}

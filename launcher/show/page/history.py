"""The history of a run as rows of the page: starts with their phases, events, nodes, the failure.

An event that this module does not know still gets a row with its fields, so that a later version's events are seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from launcher.machine.language.bilingual import both, in_chinese
from launcher.rundir.picture import Event, Node, Picture, Rank
from launcher.show.page import words
from launcher.show.stack_table import ranks_of

Line = dict[str, Any]

_STARTS = ("submitted", "slurm_submit", "slurm_start", "agent_started")
_HIDDEN = ("submitted", "agent_started", "ranks_started", "phase", "data", "steps", "progress", "memory")
"""Events that other parts of the page show."""
_PLUMBING = ("time", "event", "node", "rank")


def history(seen: Picture) -> dict[str, Any]:
    """{"starts", "longest", "events", "nodes", "failure"}; all times in unix seconds."""
    events = sorted((event for event in seen.events if event.time is not None), key=lambda event: event.time or 0.0)
    found = [phases(start) for start in split([event.fields for event in events])]
    zero = events[0].time if events else None
    return {
        "starts": found,
        "longest": max((start["ended"] - start["began"] for start in found), default=0),
        "events": collapsed([row(event, zero or 0.0) for event in events if is_shown(event)]),
        "nodes": [nodes(node) for node in seen.nodes],
        "failure": failure(seen.failure),
    }


def is_shown(event: Event) -> bool:
    """Whether an event has a row: not if another part of the page shows it, nor if a rank has ended as it should."""
    fine = event.event == "rank_exit" and not event.fields.get("code") and not event.fields.get("signal")
    return event.event not in _HIDDEN and not fine


def split(events: list[Line]) -> list[list[Line]]:
    """The events of each start: a resume, a requeue or a restart of the job begins another one.

    Agents, launcher and batch script each report a start, at about the same time and in any order.
    """
    starts: list[list[Line]] = []
    beginning = False
    for event in events:
        if event.get("event") in _STARTS:
            if not beginning:
                starts.append([])
            beginning = True
        elif event.get("event") not in ("ranks_started", "note", "warning"):
            beginning = False
        if not starts:
            starts.append([])
        starts[-1].append(event)
    return starts


def phases(events: list[Line]) -> dict[str, Any]:
    """{"began", "ended", "phases": [{"name", "from", "to"}], "marks": [{"name", "at", "step"?}]} of one start.

    A restart after a failure is a mark within its start; the time before the first phase is the phase `start`.
    """
    began, ended = events[0]["time"], events[-1]["time"]
    found: list[dict[str, Any]] = [{"name": "start", "from": began, "to": ended}]
    marks = []
    for event in events:
        name, time = event.get("event"), event["time"]
        if name == "phase":
            found[-1]["to"] = time
            found.append({"name": str(event.get("name")), "from": time, "to": ended})
        elif name == "end":
            found[-1]["to"] = min(found[-1]["to"], time)
        elif name in ("checkpoint", "restart", "request"):
            marks.append({"name": name, "at": time, **({"step": event["step"]} if "step" in event else {})})
    return {"began": began, "ended": ended, "phases": found, "marks": _thinned(marks)}


def _thinned(marks: list[dict[str, Any]], most: int = 60) -> list[dict[str, Any]]:
    """Marks that can be told apart; restarts and requests stay."""
    stride = max(1, -(-len(marks) // most))
    return [mark for place, mark in enumerate(marks) if place % stride == 0 or mark["name"] != "checkpoint"]


def row(event: Event, zero: float) -> dict[str, Any]:
    """{"after", "name", "text", "long", "count"} of an event; `long` holds texts of several lines, such as stacks.

    An event for which nobody wrote a line shows its fields.
    """
    texts, long = [], []
    for key, value in event.fields.items():
        if key in _PLUMBING or value in (None, "", [], {}) or is_groups(value):
            continue
        text = _text(value)
        if "\n" in text:
            long.append({"name": key, "text": text})
        else:
            texts.append(text if key in ("text", "message", "reason", "error") else f"{key.replace('_', ' ')} {text}")
    written = event.text if event.text and "\n" not in event.text else None
    return {
        "after": (event.time or 0.0) - zero,
        "name": event.event,
        "text": written or ", ".join(texts),
        "text_zh": _chinese(event) or (in_chinese(written) if written else ", ".join(texts)),
        "long": long,
        "stacks": stacks(event.fields.get("stacks")),
        "count": 1,
    }


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _chinese(event: Event) -> str | None:
    """What text_of says of the most common events, in Chinese."""
    write = _CHINESE.get(event.event)
    return write(event.fields) if write else None


def _checkpoint(event: Line) -> str:
    step = event.get("step")
    return "步数未记录的检查点" if step is None else f"第 {step} 步的检查点"


_CHINESE: dict[str, Callable[[Line], str]] = {
    "checkpoint": _checkpoint,
    "resumed": lambda e: f"从{_checkpoint(e)}继续",
    "restart": lambda e: f"第 {e.get('count')} 次重启：{in_chinese(str(e.get('reason')))}",
    "request": lambda e: f"收到请求：{e.get('request')}",
    "end": lambda e: f"节点 {e.get('node')}：{words.both(str(e.get('state')))[1]}",
    "length_changed": lambda e: f"总步数由 {e.get('planned')} 改为 {e.get('steps')}，学习率随之调整",
    "early_stopping": lambda e: (
        f"训练在第 {e.get('step')} 步（共 {e.get('total_steps')} 步）提前结束："
        f"连续 {e.get('patience')} 次测量都不优于第 {e.get('best')} 步"
    ),
    "best": lambda e: f"第 {e.get('step')} 步目前最佳：{e.get('metric')} {e.get('value')}",
    "data_changed": lambda e: "训练数据在检查点之后发生了改变",
    "loss_schedule": lambda e: f"每 {e.get('every')} 步测量一次，用 {e.get('of')} 条中的 {e.get('records')} 条",
    "router_loss": lambda e: f"权重 {e.get('weight')}",
    "evaluation": lambda e: f"第 {e.get('step')} 步之后的留出集评估",
}


def collapsed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with each series of checkpoints as one: the last, with their number as `count`."""
    found: list[dict[str, Any]] = []
    for one in rows:
        if found and one["name"] == found[-1]["name"] == "checkpoint":
            found[-1] = {**one, "count": found[-1]["count"] + 1}
        else:
            found.append(one)
    return found


def nodes(node: Node) -> dict[str, Any]:
    return {
        "node": node.node_rank,
        "host": node.host or "",
        "ranks": len(node.ranks),
        "rank_numbers": [rank.rank for rank in node.ranks],
        "state": node.state or "",
        "restarts": node.restarts,
        "exits": [exit_of(rank) for rank in node.ranks if rank.exit_code or rank.signal],
    }


def exit_of(rank: Rank) -> str:
    how = f"signal {rank.signal}" if rank.signal else f"exit code {rank.exit_code}"
    return f"rank {rank.rank}: {how}"


def failure(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """{"cause", "message", "message_zh", "advice", "host", "rank", "long"}; None if nothing failed."""
    if found is None:
        return None
    texts = {key: _text(value) for key, value in found.items() if key not in ("message", "advice") and value}
    texts = {key: text for key, text in texts.items() if not is_groups(found[key])}
    return {
        "cause": str(found.get("cause") or ""),
        "message": str(found.get("message") or ""),
        "message_zh": in_chinese(str(found.get("message") or "")),
        "advice": [both(str(one)) for one in found.get("advice") or ()],
        "host": found.get("host"),
        "rank": found.get("rank"),
        "long": [{"name": key, "text": text} for key, text in texts.items() if "\n" in text],
        "stacks": stacks(found.get("stacks")),
    }


def is_groups(value: Any) -> bool:
    """Whether these are the stacks of a hang: groups of ranks at one place (launcher/node/hangs.py: group_stacks)."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "frames" in one for one in value)


def stacks(value: Any) -> list[dict[str, Any]]:
    """{"ranks", "odd", "where", "frames"} of each group of ranks that hung at one place; the odd ones first."""
    if not is_groups(value):
        return []
    return [
        {
            "ranks": ranks_of(group),
            "odd": bool(group.get("odd")),
            "where": [
                f"on {', '.join(map(str, group.get('hosts') or ()))}",
                *(str(group[key]) for key in ("doing", "state") if group.get(key)),
            ],
            "frames": _text(list(group.get("frames") or ())),
        }
        for group in sorted(value, key=lambda group: not group.get("odd"))
    ]

"""Starts, phases, events and failures as rows."""

from __future__ import annotations

from typing import Any

from launcher.rundir.picture import Event
from launcher.show.page import history


def events(*lines: tuple[float, str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"time": time, "event": name, **fields} for time, name, fields in lines]


def seen(line: dict[str, Any]) -> Event:
    return Event(time=line["time"], event=line["event"], text=None, fields=line)


FIRST = [
    (0.0, "agent_started", {"node": 0}),
    (0.1, "submitted", {}),
    (0.2, "agent_started", {"node": 1}),
    (5.0, "phase", {"name": "model"}),
    (8.0, "phase", {"name": "train"}),
    (9.0, "checkpoint", {"step": 2}),
    (10.0, "end", {"state": "CANCELLED"}),
]


def test_the_agents_of_one_start_are_one_start_and_a_resume_is_another() -> None:
    again = (50.0, "submitted", {}), (50.1, "agent_started", {}), (60.0, "phase", {"name": "train"})
    found = history.split(events(*FIRST, *again))
    assert [len(start) for start in found] == [7, 3]


def test_phases_follow_each_other_to_the_end() -> None:
    found = history.phases(events(*FIRST))
    assert [(phase["name"], phase["from"], phase["to"]) for phase in found["phases"]] == [
        ("start", 0.0, 5.0), ("model", 5.0, 8.0), ("train", 8.0, 10.0),
    ]  # fmt: skip
    assert found["marks"] == [{"name": "checkpoint", "at": 9.0, "step": 2}]


def test_many_checkpoints_are_one_row_and_restarts_keep_their_marks() -> None:
    lines = events(*((float(n), "checkpoint", {"step": n}) for n in range(1000)), (1000.0, "restart", {"count": 1}))
    rows = history.collapsed([history.row(seen(line), 0.0) for line in lines])
    assert [(row["name"], row["count"]) for row in rows] == [("checkpoint", 1000), ("restart", 1)]
    marks = history.phases(lines)["marks"]
    assert len(marks) < 100
    assert marks[-1]["name"] == "restart"


def test_an_unknown_event_is_shown_with_its_fields_and_stacks_are_folded() -> None:
    line = {"time": 3.0, "event": "hang", "node": 1, "rank": 5, "seconds": 600, "stacks": ["File a.py", "File b.py"]}
    row = history.row(seen(line), 1.0)
    assert (row["after"], row["text"]) == (2.0, "seconds 600")
    assert row["long"] == [{"name": "stacks", "text": "File a.py\nFile b.py"}]


def test_the_stacks_of_a_hang_are_groups_with_the_odd_one_first() -> None:
    groups = [
        {"ranks": [0, 2, 3], "hosts": ["a"], "doing": "step 9", "state": "", "frames": ["all_reduce"], "odd": False},
        {"ranks": [1], "hosts": ["b"], "doing": "step 9", "state": "stopped", "frames": ["f", "g"], "odd": True},
    ]
    row = history.row(seen({"time": 1.0, "event": "hang", "message": "the run hangs", "stacks": groups}), 0.0)
    assert (row["text"], row["long"]) == ("the run hangs", [])
    assert [(one["ranks"], one["odd"], one["where"], one["frames"]) for one in row["stacks"]] == [
        ("rank 1", True, ["on b", "step 9", "stopped"], "f\ng"),
        ("ranks 0, 2-3", False, ["on a", "step 9"], "all_reduce"),
    ]  # fmt: skip
    found = history.failure({"cause": "hang", "message": "m", "stacks": groups, "log_tail": ["x", "y"]})
    assert found is not None
    assert ([one["ranks"] for one in found["stacks"]], [one["name"] for one in found["long"]]) == (
        ["rank 1", "ranks 0, 2-3"], ["log_tail"],
    )  # fmt: skip


def test_a_checkpoint_without_a_recorded_step_is_one_in_chinese_too() -> None:
    rows = [history.row(seen({"time": 1.0, "event": name, **step}), 0.0)["text_zh"]
            for name in ("checkpoint", "resumed") for step in ({"step": 7}, {"step": None})]  # fmt: skip
    assert rows == [
        "第 7 步的检查点", "步数未记录的检查点", "从第 7 步的检查点继续", "从步数未记录的检查点继续",
    ]  # fmt: skip

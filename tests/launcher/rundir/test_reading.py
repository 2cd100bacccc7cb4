"""The picture of a run at each moment of its life, read from files that are written bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.rundir import reading
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.picture import Count, Picture
from launcher.rundir.state import RunState, damage
from tests.beds.pictured import BEGIN, Recorded


def seen(recorded: Recorded, state: RunState = RunState.RUNNING, after: float = 0.0) -> Picture:
    return reading.read(recorded.run, state, now=recorded.clock + after)


def test_a_run_that_was_only_rendered_or_waits_in_a_queue_has_a_phase(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, backend="slurm").plan(max_steps=5)
    assert (seen(recorded, RunState.PENDING).phase, seen(recorded, RunState.PENDING).step) == ("rendered", 0)
    recorded.event("slurm_submit").submit("77")
    waiting = seen(recorded, RunState.PENDING)
    assert (waiting.phase, waiting.phase_text, waiting.ids) == ("queued", "waiting to start", ("77",))
    recorded.event("slurm_start", 60.0, reason="nodes n1")
    assert seen(recorded).phase == "starting"


def test_each_phase_has_its_own_count_and_time_left(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).plan().submit().ranks()
    assert seen(recorded).phase == "starting"
    recorded.phase("model").event("progress", 10.0, name="model", unit="bytes", done=250, total=1000)
    recorded.event("progress", name="data", unit="records", done=7)  # tokens are made in the background
    now = seen(recorded)
    assert (now.phase, now.count) == ("model", Count(unit="bytes", done=250, total=1000))
    assert now.seconds_left == pytest.approx(30.0)
    recorded.phase("data")
    assert (seen(recorded).count, seen(recorded).seconds_left) == (Count(unit="records", done=7), None)
    recorded.event("steps", total_steps=40).phase("evaluate_before")
    assert (seen(recorded).step, seen(recorded).total_steps) == (0, 40)
    recorded.event("progress", 2.0, name="evaluate_before", unit="records", done=4, total=8)
    assert seen(recorded).seconds_left == pytest.approx(2.0)
    recorded.event("evaluation", 2.0, step=0, loss=4.72, accuracy=0.1).phase("train", 0.0, total_steps=40)
    assert seen(recorded).count == Count(unit="steps", done=0, total=40)
    recorded.steps(1, 10, seconds=2.0)
    now = seen(recorded, after=1.0)
    assert (now.phase, now.step, now.count) == ("train", 10, Count(unit="steps", done=10, total=40))
    assert now.seconds_left == pytest.approx(30 * 2.0 - 1.0 + 4.0)  # and the evaluation, as long as the first
    recorded.steps(11, 40).event("checkpoint", step=40).phase("evaluate_after", 0.0).phase("save").end()
    done = seen(recorded, RunState.SUCCEEDED)
    assert [phase.name for phase in done.phases] == [
        "model", "data", "evaluate_before", "train", "evaluate_after", "save", "ended",
    ]  # fmt: skip
    assert (done.step, done.seconds_left, done.phases[3].ended) == (40, None, done.phases[4].started)


def test_a_resumed_run_shows_this_start(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).plan().submit().ranks().phase("model").phase("train", total_steps=50)
    recorded.steps(1, 50).phase("save").end()
    recorded.clock += 1000
    recorded.ranks().submit()  # the agent may be up before the launcher has written that it was submitted
    assert (seen(recorded).phase, seen(recorded).resumed_from) == ("starting", None)
    recorded.phase("model")
    assert (seen(recorded).phase, seen(recorded).step) == ("model", 0)
    recorded.event("resumed", step=50).phase("train", total_steps=80)
    assert (seen(recorded).count, seen(recorded).seconds_left) == (Count(unit="steps", done=50, total=80), None)
    recorded.steps(51, 60, seconds=3.0)
    now = seen(recorded)
    assert (now.step, now.resumed_from, len(now.curve)) == (60, 50, 60)
    assert now.seconds_left == pytest.approx(20 * 3.0)


def test_a_restart_begins_its_phases_anew_and_an_agent_of_another_node_does_not(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).plan(ranks=2).submit().ranks("a", "b").phase("model")
    recorded.event("agent_started", node=1, host="b")
    assert seen(recorded).phase == "model"
    recorded.phase("train", total_steps=9).steps(1, 3).event("restart", node=0, count=1, reason="rank 1 died")
    assert seen(recorded).phase == "starting"
    recorded.event("ranks_started", node=0, attempt=1).phase("model")
    assert [phase.name for phase in seen(recorded).phases] == ["model"]


def test_memory_and_speed_stand_beside_the_plan(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).plan(ranks=4, speed=400.0, memory=3 << 30).submit().ranks("a", "b", each=2)
    recorded.phase("train", total_steps=9).steps(1, 3)
    recorded.event("memory", node=1, rank=3, peak_bytes=5 << 30, capacity_bytes=80 << 30)
    now = seen(recorded)
    assert (now.speed_share, now.planned_bytes, now.peak_bytes) == (0.25, 3 << 30, 5 << 30)
    assert [(rank.rank, rank.peak_bytes) for node in now.nodes for rank in node.ranks] == [
        (0, 2 << 30), (1, None), (2, None), (3, 5 << 30),
    ]  # fmt: skip
    assert now.nodes[1].ranks[1].capacity_bytes == 80 << 30
    assert [(node.host, node.heartbeat) for node in now.nodes] == [("a", BEGIN), ("b", BEGIN)]


def test_held_out_losses_come_from_the_steps_and_from_the_evaluations_around_them(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).plan().submit().ranks().phase("train", total_steps=9)
    recorded.event("evaluation", step=0, loss=4.0).steps(1, 4).held_out(4, 3.0).steps(5, 9)
    scores: dict[str, Any] = {
        "before": {"loss": 4.0, "records": 8, "accuracy": 0.25, "tasks": {"qa": {"records": 8, "exact_match": 0.25}}},
        "after": {"loss": 2.0, "records": 8, "accuracy": 0.5, "tasks": {"qa": {"records": 8, "exact_match": 0.5}}},
    }
    recorded.result(steps=9, loss_first=5.0, loss_last=1.0, eval=scores).end()
    done = seen(recorded, RunState.SUCCEEDED)
    assert [(point.step, point.loss) for point in done.held_out] == [(0, 4.0), (4, 3.0), (9, 2.0)]
    assert [(score.task, score.metric, score.before, score.after) for score in done.scores] == [
        ("qa", "exact_match", 0.25, 0.5), (None, "accuracy", 0.25, 0.5), (None, "loss", 4.0, 2.0),
    ]  # fmt: skip
    assert (done.loss_first, done.loss_last) == (5.0, 1.0)


def test_the_reader_follows_a_growing_run_and_events_that_are_replaced(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).plan().submit().ranks()
    reader = reading.Reader(recorded.run)
    assert reader.read(RunState.RUNNING).phase == "starting"
    recorded.phase("train", total_steps=9).steps(1, 3)
    assert reader.read(RunState.RUNNING).step == 3
    lines = recorded.run.events.read_text().splitlines()  # a copy from the cluster, without what was noted here
    recorded.run.events.write_text("\n".join(lines[:-1]) + "\n")
    assert reader.read(RunState.RUNNING).phase == "starting"


def test_the_picture_is_plain_json_and_events_have_words(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).plan().submit().ranks().phase("train", total_steps=9).steps(1, 3)
    recorded.event("request", request="stop", by="Slurm").event("note", text="学习")
    now = seen(recorded)
    assert json.loads(msgspec.json.encode(now))["phase"] == "train"
    assert [event.text for event in now.events[-2:]] == ["stop requested by Slurm", "学习"]
    assert {"curve", "events"}.isdisjoint(reading.summarize(recorded.run, RunState.RUNNING))


def test_a_program_has_neither_steps_nor_phases_of_training(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).submit().ranks()
    recorded.run.write({"plan.json": json.dumps({"train": None, "launch": {"world_size": 1}})})
    now = seen(recorded)
    assert (now.is_program, now.phase, now.step, now.total_steps) == (True, "program", None, None)


@pytest.mark.parametrize("event", [{"event": "end", "node": 1, "state": "FAILED", "reason": "x"}, {"event": "odd"}, {}])
def test_events_of_any_kind_are_kept(tmp_path: Path, event: dict[str, Any]) -> None:
    recorded = Recorded(tmp_path).plan().submit()
    recorded._append("events.jsonl", event)
    assert seen(recorded).events[-1].fields == event


@pytest.mark.parametrize("content", [None, "{}", '{"a": 1}', '{"train": {}}', '{"train": {"model": 1}, "launch": {}}'])
def test_a_run_without_a_plan_gets_no_verdict_and_says_so(tmp_path: Path, content: str | None) -> None:
    recorded = Recorded(tmp_path).plan().submit().ranks().phase("train", total_steps=2).steps(1, 2)
    assert reading.read(recorded.run, RunState.SUCCEEDED).verdict is not None
    recorded.run.plan_json.unlink()
    if content is not None:
        recorded.run.plan_json.write_text(content)
    assert reading.read(recorded.run, RunState.SUCCEEDED).verdict is None
    assert [text for text in damage(recorded.run) if text.startswith("plan.json: ") and "is not known" in text]


def test_a_run_that_never_started_lacks_no_plan(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "tiny-20260101-000000-aaaa")
    run.save_record(RunRecord(run_id=run.run_id, name="tiny", backend="local", created=1.0, state="CANCELLED"))
    assert damage(run) == []

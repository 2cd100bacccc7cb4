from __future__ import annotations

import ast
import json
import re
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from launcher.rundir import reading
from launcher.rundir.shapes import EVENTS, PhaseName
from launcher.rundir.state import RunState, damage
from launcher.rundir.timeline import PHASES
from tests.beds.pictured import Recorded
from tests.beds.places import ROOT


def ended(tmp_path: Path, *, program: bool = False) -> Recorded:
    recorded = Recorded(tmp_path).plan().submit().ranks()
    if program:
        recorded.run.write({"plan.json": json.dumps({"train": None, "launch": {"world_size": 1}})})
    else:
        recorded.phase("model").event("progress", name="data", unit="bytes", done=1, node=0)
        recorded.phase("train", total_steps=3).steps(1, 3).event("checkpoint", step=3, node=0, rank=0)
    recorded.event("rank_exit", node=0, rank=0, code=0, signal=None).end()
    recorded.node(0, "here", [{"rank": 0, "exit_code": 0}], state="SUCCEEDED")
    return recorded


def lines_of(recorded: Recorded) -> list[dict[str, Any]]:
    return [json.loads(line) for line in recorded.run.events.read_text().splitlines()]


def rewrite(recorded: Recorded, lines: list[Any]) -> list[str]:
    recorded.run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return damage(recorded.run)


def test_an_undamaged_run_has_nothing_to_tell(tmp_path: Path) -> None:
    assert damage(ended(tmp_path).run) == []
    assert damage(ended(tmp_path / "program", program=True).run) == []


@pytest.mark.parametrize("program", [False, True])
def test_a_line_whose_event_has_another_name_is_told_with_its_place(tmp_path: Path, program: bool) -> None:
    recorded = ended(tmp_path, program=program)
    whole = lines_of(recorded)
    for place in range(len(whole)):
        for other in ("", "x", "Phase", "phase ", *(EVENTS.keys() - {whole[place]["event"]})):
            if other in EVENTS and EVENTS[other].keys() <= whole[place].keys():
                continue  # the line is sound with this name, too
            told = rewrite(recorded, [*whole[:place], {**whole[place], "event": other}, *whole[place + 1 :]])
            assert any(f"events.jsonl: 1 not understood, the first is line {place + 1} " in text for text in told)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "x"}, {"name": None}, {"time": None}, {"event": None}, {"done": -1}, {"unit": 5}, {"ids": "1"},
        {"node": "0"}, {"ranks": {}}, {"attempt": "x"}, {"step": None}, {"state": "RUNNING"}, {"host": 1},
    ],
)  # fmt: skip
def test_a_field_without_which_an_event_says_nothing_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    recorded = ended(tmp_path)
    whole, (name,) = lines_of(recorded), change
    for place, line in enumerate(whole):
        if name in ("time", "event", "node", *EVENTS[line["event"]]) and name in line:
            for damaged in ({**line, **change}, {key: value for key, value in line.items() if key != name}):
                if name == "node" and "node" not in EVENTS[line["event"]]:
                    continue
                told = rewrite(recorded, [*whole[:place], damaged, *whole[place + 1 :]])
                assert any("events.jsonl: " in text for text in told), damaged


@pytest.mark.parametrize("lost", ["ranks_started", "end"])
def test_an_event_that_a_record_speaks_of_and_that_no_line_tells_is_told(tmp_path: Path, lost: str) -> None:
    recorded = ended(tmp_path, program=True)
    told = rewrite(recorded, [line for line in lines_of(recorded) if line["event"] != lost])
    what = "the ranks of node 0 were started" if lost == "ranks_started" else "node 0 ended"
    assert told == [f"events.jsonl: no line says that {what}"]
    assert reading.read(recorded.run, RunState.SUCCEEDED).phases[0].name == "program"


def test_an_event_of_the_start_before_does_not_count(tmp_path: Path) -> None:
    recorded = ended(tmp_path, program=True)
    recorded.node(0, "here", [{"rank": 0}], state="FAILED", started=recorded.clock + 100)
    assert damage(recorded.run) == ["events.jsonl: no line says that the ranks of node 0 were started"]


def test_what_may_still_be_on_its_way_is_not_told(tmp_path: Path) -> None:
    recorded = ended(tmp_path, program=True)
    recorded.node(0, "elsewhere", [{"rank": 0}], state="FAILED", heartbeat=time.time())
    assert rewrite(recorded, [line for line in lines_of(recorded) if line["event"] != "end"]) == []


def test_a_line_of_a_later_version_is_kept_and_told(tmp_path: Path) -> None:
    recorded = ended(tmp_path).event("evaluated_twice", of=3)
    (told,) = damage(recorded.run)
    assert "1 not understood, the first is line" in told
    assert "evaluated_twice" in told
    assert reading.read(recorded.run, RunState.SUCCEEDED).events[-1].fields["of"] == 3


def test_lines_that_are_cut_off_are_not_told_twice(tmp_path: Path) -> None:
    recorded = ended(tmp_path)
    text = recorded.run.events.read_text()
    recorded.run.events.write_text(text + '{"event": "chec\n' + '{"time": 1, "event": "odd"}\n')
    (cut, odd) = damage(recorded.run)
    last = len(text.splitlines())
    assert cut == f"events.jsonl: 1 cut off, the first is line {last + 1}"
    assert odd.startswith(f"events.jsonl: 1 not understood, the first is line {last + 2} ")


def test_a_line_of_metrics_that_is_in_no_curve_is_told(tmp_path: Path) -> None:
    recorded = ended(tmp_path).held_out(3, 1.0)
    assert damage(recorded.run) == []
    with recorded.run.metrics.open("a") as file:
        file.write('{"step": 4, "tokens": 5}\n{"step": "x"}\n{"step": 5, "loss": null}\n')
    first = len(recorded.run.metrics.read_text().splitlines()) - 2
    assert damage(recorded.run) == [
        f"metrics.jsonl: 1 cut off, the first is line {first + 1}",
        f"metrics.jsonl: 1 with neither loss nor eval_loss, the first is line {first}",
        f"metrics.jsonl: line {first + 2} lacks epoch, learning_rate, grad_norm, tokens, tokens_per_second, "
        "peak_memory_bytes, time",
    ]


@pytest.mark.parametrize("lost", ["peak_memory_bytes", "learning_rate", "time", "step"])
def test_what_the_last_step_lacks_is_told_unless_a_program_of_the_user_wrote_it(tmp_path: Path, lost: str) -> None:
    recorded = ended(tmp_path)
    lines = [json.loads(line) for line in recorded.run.metrics.read_text().splitlines()]
    del lines[-1][lost]
    recorded.run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = [f"metrics.jsonl: line {len(lines)} lacks {lost}"]
    if lost == "step":
        told.insert(0, f"metrics.jsonl: 1 cut off, the first is line {len(lines)}")
    assert damage(recorded.run) == told
    own = ended(tmp_path / "program", program=True)
    own.run.metrics.write_text('{"step": 1, "loss": 2.0}\n')
    assert damage(own.run) == []


def written_events() -> set[str]:
    """The names of the events that the code writes, as its calls name them."""
    found = set()
    for path in [*(ROOT / "launcher").rglob("*.py"), *(ROOT / "train").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("event", "_event", "emit", "append_event"):
                texts = [word.value for word in node.args if isinstance(word, ast.Constant)]
                found |= {text for text in texts if isinstance(text, str)}
    batch = (ROOT / "slurm" / "train.sbatch.j2").read_text(encoding="utf-8")
    return found | set(re.findall(r"^ *note (\w+) ", batch, re.MULTILINE)) | {"rendered"}


def test_the_table_has_every_event_that_is_written() -> None:
    assert written_events() == set(EVENTS)
    assert get_args(PhaseName) == tuple(PHASES)

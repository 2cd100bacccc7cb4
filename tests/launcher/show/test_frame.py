"""Frames of the live view: never wider or higher than the terminal, whatever the run, the size and the encoding."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.cells import cell_len

from launcher.rundir import reading
from launcher.rundir.picture import Count, Picture
from launcher.rundir.state import RunState
from launcher.show import frame
from launcher.show.chart import chart
from tests.beds.pictured import Recorded

CHINESE = "学习率在前三步里上升;训练集里有两条记录重复,评估集里没有重复的记录,请检查数据来源。"
SIZES = ((80, 24), (160, 50), (40, 12), (20, 6), (300, 100))


def pictures(root: Path) -> list[Picture]:
    """A run at many moments, with long and wide texts."""
    found = []
    recorded = Recorded(root, "一个名字很长的运行-with-a-name-that-is-longer-than-most-20260101-000000-aaaa")
    recorded.plan(ranks=64, speed=400.0, memory=3 << 30)

    def look(state: RunState = RunState.RUNNING, after: float = 0.0) -> None:
        found.append(reading.read(recorded.run, state, now=recorded.clock + after))

    look(RunState.PENDING)
    recorded.submit("1234567").event("note", text=f"waiting in the queue: {CHINESE}")
    look(RunState.PENDING, 70.0)
    recorded.ranks(*(f"节点-{node}.cluster.example.org" for node in range(8)), each=8)
    recorded.phase("model").event("progress", 5.0, name="model", unit="bytes", done=10**9, total=10**11)
    look()
    recorded.phase("data").event("progress", 5.0, name="data", unit="records", done=123_456, total=7_654_321)
    recorded.event("warning", text="a word of " + "x" * 500).event("warning", text=CHINESE * 5 + "\x1b[31m\r\n\t")
    look()
    recorded.event("memory", node=1, rank=9, peak_bytes=5 << 30)
    recorded.phase("train", total_steps=1000)
    look()
    for step in range(1, 200):
        recorded.steps(step, step, loss=lambda at: 9.0 - at / 40)
        if step % 20 == 0:
            recorded.held_out(step, 9.0 - step / 40 if step < 100 else 7.0 + step / 30)
    look(after=100.0)
    message = f"rank 3 on 节点-3 exited with code 1: {CHINESE}"
    recorded.node(3, "节点-3", [{"rank": 24}], state="FAILED", failure={"cause": "bug", "message": message, "rank": 24})
    look(RunState.FAILED)
    recorded.end("FAILED")
    look(RunState.FAILED)
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "ascii", "latin-1"])
def test_no_line_is_wider_and_no_frame_higher_than_the_terminal(tmp_path: Path, encoding: str) -> None:
    for picture in pictures(tmp_path):
        for width, height in SIZES:
            lines = frame.frame(picture, width=width, height=height, encoding=encoding, footer=CHINESE)
            assert len(lines) <= height
            texts = [line.plain for line in lines]
            assert [text for text in texts if cell_len(text.encode(encoding).decode(encoding)) > width] == []
            once = [line.plain for line in frame.report(picture, width=width, encoding=encoding)]
            assert [text for text in once if cell_len(text.encode(encoding).decode(encoding)) > width] == []


def test_every_moment_has_a_phase_and_none_says_starting_of_nothing(tmp_path: Path) -> None:
    for picture in pictures(tmp_path):
        shown = "\n".join(line.plain for line in frame.frame(picture, width=100, height=30))
        assert picture.phase_text in shown
        assert "?" not in shown.replace("请检查", "")


def test_chinese_is_folded_between_characters_and_begins_no_line_with_a_comma() -> None:
    sheet = frame.Sheet(40)
    sheet.row("12:00:00", CHINESE)
    texts = [line.plain for line in sheet.lines]
    assert "".join(text[frame.LABEL :] for text in texts) == CHINESE
    assert [text[frame.LABEL] for text in texts if text[frame.LABEL] in frame.CLOSING] == []
    assert all(24 <= cell_len(text[frame.LABEL :]) <= 26 for text in texts[:-1])


def test_words_are_folded_at_blanks() -> None:
    sheet = frame.Sheet(34)
    sheet.row("note", "one two three four five six seven eight")
    assert [line.plain.rstrip() for line in sheet.lines] == [
        "  note        one two three four", "              five six seven eight",
    ]  # fmt: skip


def test_a_node_that_is_silent_comes_first_and_says_for_how_long(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path).plan(ranks=2).submit().ranks("quick", "slow")
    recorded.clock += 40
    recorded.node(0, "quick", [{"rank": 0}])
    shown = frame.frame(reading.read(recorded.run, RunState.RUNNING, now=recorded.clock), width=80, height=24)
    (line,) = [text.plain for text in shown if text.plain.startswith("  node")]
    assert line == "  node 1      slow rank 1, no sign of life for 40 s   and 1 more nodes"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.44, "0.4 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3723, "1 h 02 min"), (100_000, "1 d 3 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert frame.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (Count(unit="bytes", done=1_500_000_000, total=15_200_000_000), "1.50 of 15.20 GB"),
        (Count(unit="steps", done=31, total=63), "step 31 of 63, 49%"),
        (Count(unit="records", done=12_345, total=70_000), "12,345 of about 70,000 records"),
        (Count(unit="weights", done=3), "3 weights"),
    ],
)
def test_amounts(count: Count, text: str) -> None:
    assert frame.amount(count) == text


@pytest.mark.parametrize("fancy", [True, False])
@pytest.mark.parametrize(
    "curve", [[(1, 1.0)], [(1, 1.0), (2, 1.0)], [(1, 1e-9), (2, 1e9)], [(0, -5.0), (9, 5.0), (10, 0.0)]]
)
def test_charts_of_any_numbers(curve: list[tuple[float, float]], fancy: bool) -> None:
    for width, height in ((12, 3), (40, 8), (200, 30)):
        lines = chart(curve, [(1, curve[0][1])], width=width, height=height, fancy=fancy)
        assert len(lines) == height + 1
        assert max(cell_len(line.plain) for line in lines) <= max(width, 26)

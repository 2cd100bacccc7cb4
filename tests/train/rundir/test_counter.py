"""How far a phase or a command is: events of a run, or lines on standard error."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from train.rundir import counter
from train.rundir.counter import Lines, count_in, doing
from train.rundir.run_files import RunDir


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter, "LINES_AFTER", 0.05)
    monkeypatch.setattr(counter, "LINES_EVERY", 0.05)
    monkeypatch.setattr(counter, "_run", None)


def written(file: io.StringIO, wanted: str) -> str:
    """What a command has written once it has written `wanted`."""
    end = time.monotonic() + 20
    while wanted not in file.getvalue():
        assert time.monotonic() < end, file.getvalue()
        time.sleep(0.01)
    return file.getvalue()


def test_a_call_that_counts_nothing_shows_that_it_is_at_work() -> None:
    with Lines(file := io.StringIO()):
        doing("loading the base model", "weights")
        assert "loading the base model: 0 s so far\n" in written(file, "so far")


def test_counted_work_shows_total_and_time_left_and_bytes_their_rate() -> None:
    lines = Lines(file := io.StringIO())
    with lines:
        lines.now("answering", "records")(40, 500)
        lines.begun -= 4
        assert "answering: 40 of 500 records, 4" in written(file, "left")
        lines.now("fetching hub:a/b", "bytes")(31_500_000, None)
        lines.begun -= 10
        assert "fetching hub:a/b: 31.5 MB, " in written(file, "MB/s")


def test_work_that_something_else_interrupted_shows_again_when_it_goes_on() -> None:
    with Lines(file := io.StringIO()):
        read = doing("reading data.train", "records")
        doing("fetching hub:a/b", "bytes", "data")
        written(file, "fetching hub:a/b")
        read(7, 10)
        assert "reading data.train: 7 of 10 records" in written(file, "reading")


def test_quick_work_and_the_end_of_the_command_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter, "LINES_AFTER", 0.3)
    with Lines(file := io.StringIO()):
        doing("loading")
    time.sleep(0.4)
    assert file.getvalue() == ""
    doing("later")(1, 2)  # nobody asked for lines
    assert file.getvalue() == ""


def test_a_training_counts_what_has_a_phase_as_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter, "SECONDS", 0.0)
    run = RunDir(tmp_path)
    count_in(run)
    doing("loading")(1, 2)
    doing("fetching hub:a/b", "bytes", "data")(5_000, None)
    (event,) = [json.loads(line) for file in tmp_path.rglob("events*.jsonl") for line in file.open()]
    assert (event["event"], event["name"], event["unit"], event["done"]) == ("progress", "data", "bytes", 5000)

"""The copy of a run from its hosts: every byte once and in order, also where a file is torn or written anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.ssh.mirror import Mirror
from launcher.rundir.directory import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "r-20260101-000000-abcd")


def answer(*files: tuple[str, int, bytes], record: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "record": record,
        "files": [[name, offset, len(data)] for name, offset, data in files],
        "payload": b"".join(data for _, _, data in files),
    }


def test_the_size_here_is_the_offset_to_read_on_from_there(run: RunDir) -> None:
    mirror = Mirror(run, [0, 1])
    tops = mirror.tops(1, logs=True)
    assert mirror.offsets(1, tops) == {}
    mirror.apply(1, answer(("logs/node-1/rank-1.log", 0, b"one\ntw"), ("logs/node-1/agent.log", 0, b"x")))
    assert mirror.offsets(1, tops) == {"logs/node-1/rank-1.log": 6, "logs/node-1/agent.log": 1}
    mirror.apply(1, answer(("logs/node-1/rank-1.log", 6, b"o\n")))
    assert (run.path / "logs/node-1/rank-1.log").read_bytes() == b"one\ntwo\n"


def test_events_of_every_host_come_into_one_file_line_by_line_even_if_torn(run: RunDir) -> None:
    mirror = Mirror(run, [0, 1])
    mirror.apply(0, answer(("events.jsonl", 0, b'{"a": 1}\n{"b"')))
    mirror.apply(1, answer(("events.jsonl", 0, b'{"c": 3}\n')))
    mirror.apply(0, answer(("events.jsonl", 13, b": 2}\n")))
    assert run.read_events() == [{"a": 1}, {"c": 3}, {"b": 2}]
    assert mirror.offsets(0, ["events.jsonl"]) == {"events.jsonl": 18}


def test_a_rewritten_file_of_a_host_replaces_the_copy(run: RunDir) -> None:
    mirror = Mirror(run, [0])
    mirror.apply(0, answer(("metrics.jsonl", 0, b"a long first attempt\n")))
    mirror.apply(0, answer(("metrics.jsonl", 0, b"short\n")))
    assert run.metrics.read_bytes() == b"short\n"


def test_a_shared_file_is_read_from_one_host_only(run: RunDir) -> None:
    mirror = Mirror(run, [0, 0, 2])
    assert [("events.jsonl" in mirror.tops(node, logs=False)) for node in range(3)] == [True, False, True]
    assert [("metrics.jsonl" in mirror.tops(node, logs=False)) for node in range(3)] == [True, False, False]
    assert mirror.tops(1, logs=True, rank=5) == ["logs/node-1/rank-5.log"]


def test_a_node_that_is_another_host_now_is_forgotten(run: RunDir) -> None:
    mirror = Mirror(run, [0, 1])
    mirror.apply(1, answer(("logs/node-1/rank-1.log", 0, b"old"), ("events.jsonl", 0, b"{}\n"), record={"x": 1}))
    assert json.loads((run.nodes_dir / "node-1.json").read_text()) == {"x": 1}
    mirror.forget(1)
    assert mirror.offsets(1, mirror.tops(1, logs=True)) == {}
    assert not (run.nodes_dir / "node-1.json").exists()

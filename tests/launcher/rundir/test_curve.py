"""Curves of metrics.jsonl: exact while short, with their extremes when long, never read twice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.rundir import curve, shapes
from launcher.rundir.curve import Curves, last_metric
from launcher.rundir.jsonl import complete_lines, unlike


def line(step: int, loss: float | None = None, **fields: Any) -> str:
    return json.dumps({"step": step, **({} if loss is None else {"loss": loss}), **fields}) + "\n"


def points(curves: Curves) -> list[tuple[int, float | None]]:
    return [(point.step, point.loss) for block in curves.read().loss.blocks for point in block.points]


def test_a_short_curve_is_every_line(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(line(1, 2.0) + line(1, eval_loss=1.5) + "torn{\n\n" + line(2, 1.0) + line(3, 0.5)[:9])
    curves = Curves(metrics)
    assert points(curves) == [(1, 2.0), (2, 1.0)]
    assert [point.eval_loss for block in curves.index.held_out.blocks for point in block.points] == [1.5]
    with metrics.open("a") as file:
        file.write(line(3, 0.5)[9:] + '{"step": 4, "loss": 0.25, "time": "odd"}\n{"step": 5, "loss": null}\n17\n')
    assert points(curves) == [(1, 2.0), (2, 1.0), (3, 0.5), (4, 0.25)]
    assert not curves.file.exists()


@pytest.mark.parametrize(
    "damage", [b'"x": "\xe1"', b'"epoch": "\xff"', b'"records": [1', b'"x": "\xe1", "epoch": "odd"']
)
def test_a_line_with_damage_beside_its_loss_ends_nothing_and_is_found(tmp_path: Path, damage: bytes) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(line(1, 2.0).encode() + b'{"step": 2, "loss": 1.5, ' + damage + b"}\n" + line(3, 1.0).encode())
    assert {(1, 2.0), (3, 1.0)} <= set(points(Curves(metrics))) <= {(1, 2.0), (2, 1.5), (3, 1.0)}
    assert unlike(complete_lines(metrics), shapes.Metric) == [2]


def test_a_missing_file_is_an_empty_curve(tmp_path: Path) -> None:
    assert points(Curves(tmp_path / "metrics.jsonl")) == []
    assert last_metric(tmp_path / "metrics.jsonl") == (None, False)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ('{"step": 2, "eval_loss": 1.5}\n', (1, 2.0, False)),
        ('{"step": 2, "eval_loss": null, "seconds": 1}\n', (1, 2.0, False)),
        ('{"step": 2, "loss": 0.5}\n', (2, 0.5, False)),
        ('{"step": 2, "loss": null}\n', (1, 2.0, True)),
        ('{"step": 2}\n', (1, 2.0, True)),
        ('{"loss": 0.5}\n', (1, 2.0, True)),
        ('{"step": -1, "loss": 0.5}\n', (1, 2.0, True)),
        ('{"step": 2, "loss": "0.5"}\n', (1, 2.0, True)),
        ('{"step": 2, "lo', (1, 2.0, True)),
        ("[]\n", (1, 2.0, True)),
    ],
)
def test_the_last_loss_is_that_of_a_line_and_damaged_lines_after_it_are_noticed(
    tmp_path: Path, last: str, expected: tuple[int, float, bool]
) -> None:
    (tmp_path / "metrics.jsonl").write_text(line(1, 2.0) + last)
    metric, damaged = last_metric(tmp_path / "metrics.jsonl")
    assert metric is not None
    assert (metric.step, metric.loss, damaged) == expected


@pytest.mark.parametrize("piece", [1, 7, 999, 100_000])
def test_a_long_curve_keeps_its_extremes_and_its_ends(tmp_path: Path, piece: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(curve, "WORTH_KEEPING", 1)
    monkeypatch.setattr(curve, "MOST_BLOCKS", 50)
    chance = random.Random(piece)
    losses = [chance.random() + 1 for _ in range(5000)]
    losses[3333], losses[4444] = 99.0, -5.0
    metrics = tmp_path / "metrics.jsonl"
    for start in range(0, len(losses), piece) if piece > 1 else (0, 1, 2, 3):
        end = start + piece if piece > 1 or start < 3 else len(losses)
        with metrics.open("a") as file:
            file.writelines(line(step + 1, losses[step]) for step in range(start, min(end, len(losses))))
        Curves(metrics).read()
    kept = points(Curves(metrics))
    assert len(kept) <= 4 * 51
    assert [kept[0], kept[-1]] == [(1, losses[0]), (5000, losses[-1])]
    assert {(3334, 99.0), (4445, -5.0)} <= set(kept)
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})
    series = Curves(metrics).read().loss
    assert sum(block.lines for block in series.blocks) == series.lines == 5000
    assert sum(block.mean * block.lines for block in series.blocks) / 5000 == pytest.approx(sum(losses) / 5000)


def test_a_file_that_a_resume_has_cut_is_read_again(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(curve, "WORTH_KEEPING", 1)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(line(step, 1.0) for step in range(1, 10)))
    curves = Curves(metrics)
    curves.read()
    metrics.write_text("".join(line(step, 1.0 if step < 5 else 2.0) for step in range(1, 30)))
    assert points(curves)[4:] == [(step, 2.0) for step in range(5, 30)]
    assert points(Curves(metrics)) == points(curves)


def test_a_damaged_or_read_only_index_costs_only_time(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(curve, "WORTH_KEEPING", 1)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(line(1, 1.0))
    curves = Curves(metrics)
    curves.file.write_text('{"schema": 1, "offset": "x"')
    assert points(Curves(metrics)) == [(1, 1.0)]
    curves.file.unlink()
    curves.file.mkdir()  # also for root, a place that cannot be written
    assert points(Curves(metrics)) == [(1, 1.0)]


def test_smoothing_begins_at_the_first_loss_and_follows_the_rest(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(line(step, 4.0 if step < 100 else 1.0) for step in range(1, 301)))
    smoothed = [value for _, value in Curves(metrics).read().loss.smoothed()]
    assert smoothed[0] == smoothed[50] == pytest.approx(4.0)
    assert smoothed[-1] == pytest.approx(1.0, abs=0.01)


def test_a_million_steps_take_little_memory_and_hardly_any_time_again(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    text = line(123456, 2.345678901234, grad_norm=0.1234567890123, learning_rate=1.234e-4, epoch=1.0, tokens=12345678,
                tokens_per_second=1000.0, peak_memory_bytes=1 << 33, time=1.7e9)  # fmt: skip
    with metrics.open("w") as file:
        for _ in range(1000):
            file.write(text * 1000)
        file.write(line(1_000_001, 0.5))
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom launcher.rundir.curve import Curves\n"
        "def of(file, key): return int(re.search(key + r':\\s+(\\d+)', Path('/proc/self/' + file).read_text())[1])\n"
        "before = of('io', 'rchar')\nindex = Curves(Path(sys.argv[1])).read()\n"
        "print(of('io', 'rchar') - before, of('status', 'VmHWM') / 1024, index.loss.lines)"
    )
    command = [sys.executable, "-c", code, str(metrics)]
    cold, again = (subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(2))
    assert (cold[2], again[2]) == ("1000001", "1000001")
    assert float(cold[1]) < 100  # MiB; VmHWM, because ru_maxrss begins with the parent's
    assert int(again[0]) < 0.02 * int(cold[0])  # bytes read
    last, _ = last_metric(metrics)
    assert last is not None
    assert last.step == 1_000_001

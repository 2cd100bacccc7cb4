"""Settings that follow the size of the data: saves and evaluations by epoch, the first records of a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import events, train

pytestmark = pytest.mark.train


def test_saves_evaluations_and_warm_up_come_at_the_steps_that_the_job_says(
    configure: Any, records: dict[str, str]
) -> None:
    """20 of 40 records in batches of 4: 5 steps per epoch, 10 in all."""
    over = {
        "data.train": [{"path": records["train"], "first": 20}],
        "train.max_steps": None, "train.epochs": 2, "train.global_batch_size": 4, "train.adam_beta2": 0.95,
        "train.gradient_accumulation_steps": 2, "train.checkpoint_every": "epoch", "train.keep_checkpoints": 9,
        "train.warmup_steps": 4, "train.scheduler": "constant", "eval.every": "0.4 epochs", "eval.after": False,
        "eval.keep_best": "none",
    }  # fmt: skip
    run: Path = configure("epoch-wise", **over)
    train(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    assert list(rates) == list(range(1, 11))
    assert list(rates.values())[:5] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == ["step-10", "step-5"]
    measured = [line["step"] for line in lines if "eval_loss" in line]
    assert [step for step in measured if 0 < step < 10] == [2, 4, 6, 8]
    assert [event["total_steps"] for event in events(run, "steps")] == [10]


def test_a_batch_in_tokens_takes_as_many_records_as_have_them(configure: Any) -> None:
    """The same job in packed rows; a resume plans the same batch."""
    over = {
        "train.max_steps": None, "train.epochs": 2, "train.global_batch_size": 2, "train.batch_tokens": 400,
        "train.gradient_accumulation_steps": 1, "train.packing": "pack", "data.eval": None,
    }  # fmt: skip
    run: Path = configure("tokens", **over)
    train(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (data,) = events(run, "data")
    mean = data["tokens"] / data["records"]
    batch = round(400 / mean / 2) * 2
    assert batch > 2
    assert [event["total_steps"] for event in events(run, "steps")] == [-(-80 // batch)]
    assert lines[0]["tokens"] == pytest.approx(400, rel=0.35)
    assert lines[0]["epoch"] == pytest.approx(batch / 40)

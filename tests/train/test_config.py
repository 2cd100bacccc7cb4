"""train.json holds only numbers that a run can be made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from train.config import TrainConfig, load, remark_on_steps

NUMBERS = {"global_batch_size": 1, "micro_batch_size": 1, "gradient_accumulation_steps": 1}


def written(place: Path, key: str, value: Any) -> Path:
    job: dict[str, Any] = {"run_id": "r", "device": "cpu", "model": {}, "data": {}, "lora": {}, "train": NUMBERS}
    section, _, last = key.rpartition(".")
    job = {**job, section: {**job.get(section, {}), last: value}} if section else {**job, last: value}
    file = place / "train.json"
    file.write_text(json.dumps(job))
    return file


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("world_size", 0, "at least 1"),
        ("data.max_length", 0, "at least 8"),
        ("lora.r", 0, "at least 1"),
        ("lora.alpha", 0, "above 0"),
        ("lora.dropout", 1, "0 to 0.99"),
        ("lora.dropout", -0.1, "0 to 0.99"),
        ("lora.plus_ratio", -1, "above 0"),
        ("train.epochs", 0, "above 0"),
        ("train.max_steps", 0, "at least 1"),
        ("train.micro_batch_size", 0, "at least 1"),
        ("train.gradient_accumulation_steps", 0, "at least 1"),
        ("train.learning_rate", 0, "above 0, at most 1"),
        ("train.warmup_ratio", 2, "0 to 1"),
        ("train.weight_decay", -1, "at least 0"),
        ("train.max_grad_norm", -1, "at least 0"),
        ("train.seed", -1, "0 to 4294967295"),
        ("train.seed", 2**32, "0 to 4294967295"),
        ("train.checkpoint_every", -1, "at least 0"),
        ("train.keep_checkpoints", 0, "at least 1"),
        ("train.log_every", 0, "at least 1"),
        ("eval.max_records", 0, "at least 1"),
        ("eval.max_new_tokens", 0, "at least 1"),
        ("eval.batch_size", 0, "at least 1"),
        ("eval.samples", -1, "at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused_with_what_is_accepted(
    tmp_path: Path, key: str, value: Any, accepted: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"{key}: expected {accepted}, got {value}(\.0)?"):
        load(written(tmp_path, key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora.dropout", 0),
        ("train.max_grad_norm", 0),
        ("train.seed", 0),
        ("train.seed", 2**32 - 1),
        ("train.max_steps", None),
        ("lora.plus_ratio", None),
        ("eval.samples", 0),
    ],
)
def test_the_ends_of_a_range_and_what_is_not_given_are_accepted(tmp_path: Path, key: str, value: Any) -> None:
    assert isinstance(load(written(tmp_path, key, value)), TrainConfig)


@pytest.mark.parametrize(
    ("records", "epochs", "max_steps", "batch", "remark"),
    [
        (10, 3.0, None, 64, "1 step; each record 6.4 times; set train.global_batch_size below 10"),
        (10, 20.0, None, 64, "4 steps; each record 25.6 times; set train.global_batch_size below 10"),
        (1, 1.0, None, 2, "1 step; each record 2 times; set train.global_batch_size to 1"),
        (10, 1.0, 5, 64, "5 steps; each record 32 times; set train.global_batch_size below 10"),
        (
            100, 1.0, None, 64,
            "2 steps; each record 1.28 times, because the last step takes 28 records more than train.epochs asks for; "
            "set train.global_batch_size below 64 for more steps",
        ),
        (64, 3.0, None, 64, "3 steps; each record 3 times; set train.global_batch_size below 64 for more steps"),
        (64, 10.0, None, 64, None),
        (1000, 1.0, None, 64, None),
        (100, 1.0, 3, 64, None),
        (64, 1.0, 12, 64, None),
        (0, 1.0, None, 64, None),
    ],
)  # fmt: skip
def test_few_records_or_steps_are_remarked_on(
    records: int, epochs: float, max_steps: int | None, batch: int, remark: str | None
) -> None:
    assert remark_on_steps(records, epochs, max_steps, batch) == remark

"""When the loss on data.eval is measured: about ten times a run, and for at most 5% of its work."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.plan.training import loss_reason
from train.config import Data, Evaluation, Lora, Model, TrainConfig, Training, loss_schedule


def config(every: Any = "auto", held: Any = "e", train: Any = "t", **numbers: Any) -> TrainConfig:
    batch = {"global_batch_size": 8, "micro_batch_size": 8, "gradient_accumulation_steps": 1}
    return TrainConfig(
        run_id="r", device="cpu", model=Model(), data=Data(train=train, eval=held), lora=Lora(),
        train=Training(**batch, **numbers), eval=Evaluation(every=every),
    )  # fmt: skip


@pytest.mark.parametrize("steps", [1, 5, 12, 63, 100, 999, 100_000])
@pytest.mark.parametrize("records", [1, 7, 8, 64, 500, 100_000])
@pytest.mark.parametrize(("batch", "each"), [(1, 1.0), (8, 1.0), (64, 0.2), (8, 30.0)])
def test_the_schedule_costs_at_most_its_share_and_measures_about_ten_times(
    steps: int, records: int, batch: int, each: float
) -> None:
    found = loss_schedule(steps, steps * batch, records, each)
    if not found.every:
        assert 2 * min(records, 8) * each * 0.5 > 0.05 * steps * batch  # not even twice on a few records
        return
    times = -(-steps // found.every) + 1
    assert times * found.records * each * 0.5 <= 0.05 * steps * batch
    assert 2 <= times <= 11
    assert found.records == records or found.records >= min(8, records)


def test_a_long_run_measures_ten_times_and_on_all_records() -> None:
    assert loss_schedule(1000, 64_000, 500) == (100, 500)


def test_the_plan_says_when_and_why() -> None:
    (reason,) = loss_reason(config(max_steps=63), 500, 64)
    assert (reason.setting, reason.value) == ("eval.every", 13)
    assert reason.reason == "6 measurements of the loss on 8 of 64 records of data.eval cost at most 5% of the training"
    (reason,) = loss_reason(config(epochs=2.0), 12, 64)
    assert (reason.value, "at the end only" in reason.reason) == (0, True)
    (reason,) = loss_reason(config(epochs=2.0), None, 64)
    assert (reason.value, "about 10 times" in reason.reason) == ("auto", True)


@pytest.mark.parametrize("given", [{"every": 5}, {"every": 0}, {"held": None}])
def test_what_the_job_decides_has_no_reason(given: dict[str, Any]) -> None:
    assert loss_reason(config(max_steps=63, **given), 500, 64) == ()

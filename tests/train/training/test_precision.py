"""Loss scaling: a float16 run goes on from its checkpoint as if it had never stopped."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")

OVERFLOWS = (2, 5)
"""Steps whose gradient is infinite."""


def strategy(dtype: Any) -> Any:
    from train.config import Data, Lora, Model, TrainConfig, Training
    from train.dist import from_environment
    from train.training.strategy import ReplicatedStrategy

    numbers = Training(global_batch_size=1, micro_batch_size=1, gradient_accumulation_steps=1)
    config = TrainConfig(run_id="r", device="cpu", model=Model(), data=Data(), lora=Lora(), train=numbers)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model = torch.nn.Linear(3, 1)

        def forward(self, x: Any) -> Any:
            return self.model(x).square().sum()

    made = ReplicatedStrategy(config, from_environment("cpu", {}), Loss(), dtype)
    made.autocast = nullcontext
    made.scaler.set_growth_interval(3)
    return made


def run(made: Any, first: int, last: int) -> list[float]:
    scales = []
    for step in range(first, last):
        value = float("inf") if step in OVERFLOWS else 0.5 + step
        made.backward({"x": torch.full((1, 3), value)}, 1.0, last=True)
        made.step(0.1)
        scales.append(made.scaler.get_scale())
    return scales


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_a_float16_run_resumes_with_its_scale_its_patience_and_adams_own_count(stop: int) -> None:
    whole = strategy(torch.float16)
    scales = run(whole, 0, 10)
    assert scales[2] == scales[1] / 2
    before = strategy(torch.float16)
    assert run(before, 0, stop) == scales[:stop]
    state = {name: value.clone() for name, value in before.gather().items()}
    after = strategy(torch.float16)
    after.restore(state, stop)
    assert run(after, stop, 10) == scales[stop:]
    for name, value in whole.gather().items():
        assert torch.equal(after.gather()[name], value), name


def test_a_run_that_scales_no_losses_records_nothing_of_it_and_reads_older_checkpoints() -> None:
    made = strategy(torch.float32)
    run(made, 0, 2)
    state = made.gather()
    assert not [name for name in state if name.startswith("scaling/")]
    older = strategy(torch.float16)
    older.restore(state, 2)
    assert older.scaler.get_scale() == 65536
    assert float(older.optimizer.state[older.named[0][1]]["step"]) == 2

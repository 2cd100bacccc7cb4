"""The training loop with a strategy that only counts."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.train
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")


class Counting:
    """A strategy without a model."""

    skips = False

    def __init__(self) -> None:
        self.loss = torch.nn.Identity()
        self.steps = 0

    def backward(self, inputs: dict[str, Any], scale: float, *, last: bool) -> Any:
        return torch.tensor(1.0)

    def step(self, rate: float) -> float:
        self.steps += 1
        return 1.0

    def evaluation(self) -> Any:
        return nullcontext()


def loop_over(place: Path, strategy: Any, saved: list[Any], evaluate: Any) -> Any:
    """A loop of nine steps of two records, with a checkpoint at the end and an evaluation every second step."""
    from train.config import Data, Evaluation, Lora, Model, TrainConfig, Training
    from train.data.dataset import Part
    from train.data.tokens import Tokens
    from train.dist import from_environment
    from train.rundir.run_files import RunDir
    from train.training.loop import Loop

    count, length = 8, 4
    offsets = np.arange(count + 1, dtype=np.int64) * length
    tokens = np.zeros(count * length, dtype=np.int32)
    data = Part((), Tokens(tokens, np.ones(len(tokens), dtype=np.bool_), offsets, np.arange(count)), (count,), (1.0,))
    config = TrainConfig(
        run_id="r", device="cpu", model=Model(), data=Data(max_length=8), lora=Lora(),
        train=Training(global_batch_size=2, micro_batch_size=2, gradient_accumulation_steps=1, checkpoint_every=0),
        eval=Evaluation(every=2),
    )  # fmt: skip
    rundir = RunDir(place)
    rundir.control("stop").parent.mkdir()
    return Loop(
        config=config, world=from_environment("cpu", {}), rundir=rundir, data=data, strategy=strategy, pad=0, total=9,
        save=lambda progress: saved.append((progress.step, strategy.steps)), evaluate=evaluate,
        first_step_done=lambda: None,
    )  # fmt: skip


def test_a_stop_during_an_evaluation_saves_the_current_step(tmp_path: Path) -> None:
    from train.rundir.run_files import RunDir
    from train.training.checkpoint import Progress
    from train.training.evaluator import Interrupted

    strategy, rundir = Counting(), RunDir(tmp_path)
    saved: list[Any] = []

    def evaluate(records: int | None) -> dict[str, float]:
        if strategy.steps < 4:
            return {"loss": 1.0}
        rundir.control("stop").write_text("{}")
        raise Interrupted

    progress, stopped = loop_over(tmp_path, strategy, saved, evaluate).run(Progress(step=0))
    assert (progress.step, stopped) == (4, True)
    assert saved == [(4, 4)]
    assert not rundir.control("stop").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_logged_or_saved(tmp_path: Path, bad: float) -> None:
    from train.errors import UserError
    from train.training.checkpoint import Progress

    class Diverging(Counting):
        def backward(self, inputs: dict[str, Any], scale: float, *, last: bool) -> Any:
            return torch.tensor(bad if self.steps == 3 else 1.0)

    saved: list[Any] = []
    with pytest.raises(UserError, match=r"step 4 is (nan|inf)") as ended:
        loop_over(tmp_path, Diverging(), saved, lambda records: {"loss": 1.0}).run(Progress(step=0))
    assert "learning_rate" in ended.value.advice[0]
    assert saved == []
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("skips", [False, True])
def test_a_gradient_that_is_not_finite_ends_the_run_unless_the_strategy_skips_such_steps(
    tmp_path: Path, skips: bool
) -> None:
    """Here at the last step: no later loss would show it, and the adapter would be saved."""
    from train.errors import UserError
    from train.training.checkpoint import Progress

    class Diverging(Counting):
        def step(self, rate: float) -> float:
            super().step(rate)
            return float("nan") if self.steps == 9 else 1.0

    strategy, saved = Diverging(), []
    strategy.skips = skips
    loop = loop_over(tmp_path, strategy, saved, lambda records: {"loss": 1.0})
    if skips:
        assert loop.run(Progress(step=0))[1] is False
        return
    with pytest.raises(UserError, match="the gradient of step 9 is nan: training has diverged"):
        loop.run(Progress(step=0))
    assert saved == []


def test_the_replicated_strategy_skips_such_steps_only_with_loss_scaling() -> None:
    from train.config import Data, Lora, Model, TrainConfig, Training
    from train.dist import from_environment
    from train.training.strategy import ReplicatedStrategy

    config = TrainConfig(
        run_id="r", device="cpu", model=Model(), data=Data(), lora=Lora(),
        train=Training(global_batch_size=1, micro_batch_size=1, gradient_accumulation_steps=1),
    )  # fmt: skip

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(2, 1)

        def forward(self, x: Any) -> Any:
            return self.model(x).sum()

    for dtype, skips in ((torch.float32, False), (torch.float16, True)):
        loss = Loss()
        strategy = ReplicatedStrategy(config, from_environment("cpu", {}), loss, dtype)
        assert strategy.skips is skips
        strategy.autocast = nullcontext
        strategy.backward({"x": torch.tensor([[float("inf"), 1.0]])}, 1.0, last=True)
        assert not torch.isfinite(strategy.step(0.1))
        assert bool(loss.model.weight.isfinite().all()) is skips

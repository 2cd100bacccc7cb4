"""A model is in training mode from the first step: dropout is at work, and so is gradient checkpointing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import metrics, train

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """GPT-2 drops a tenth of its activations in training, as published."""
    from tests.beds.models import CHATML, native

    place = tmp_path_factory.mktemp("gpt2")
    native(place, "GPT2Config", ["<|endoftext|>"], "<|endoftext|>", CHATML, n_positions=512)
    return str(place)


@pytest.fixture(scope="module")
def runs(configure: Any, with_dropout: str) -> dict[str, Path]:
    """A run; one that evaluates after every step; one resumed after step 3; one that recomputes activations."""
    of_gpt2 = {"model.source": "huggingface", "model.path": with_dropout, "eval.after": False}
    found = {
        "plain": configure("mode-plain", **of_gpt2),
        "evaluated": configure("mode-evaluated", **{**of_gpt2, "eval.every": 1}),
        "checkpointing": configure("mode-checkpointing", **{**of_gpt2, "train.gradient_checkpointing": True}),
    }
    train(*found.values())
    resumed = configure("mode-resumed", **of_gpt2)
    shutil.copytree(found["plain"] / "checkpoints" / "step-3", resumed / "checkpoints" / "step-3")
    shutil.copy(found["plain"] / "metrics.jsonl", resumed)
    train(resumed)
    return {**found, "resumed": resumed}


def test_how_often_one_evaluates_does_not_change_the_losses(runs: dict[str, Path]) -> None:
    assert metrics(runs["evaluated"]) == metrics(runs["plain"])


def test_a_resumed_run_of_a_model_with_dropout_is_the_same_run(runs: dict[str, Path]) -> None:
    from safetensors.torch import load_file

    assert metrics(runs["resumed"]) == metrics(runs["plain"])
    whole, resumed = (load_file(runs[name] / "adapter" / "adapter_model.safetensors") for name in ("plain", "resumed"))
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_recomputed_activations_are_dropped_alike(runs: dict[str, Path]) -> None:
    assert metrics(runs["checkpointing"]) == pytest.approx(metrics(runs["plain"]), rel=1e-5)


@pytest.mark.parametrize(("engine", "checkpointing", "passes"), [("peft", True, 2), ("peft", False, 1)])
def test_a_layer_runs_twice_a_step_where_activations_are_recomputed(
    engine: str, checkpointing: bool, passes: int, with_dropout: str
) -> None:
    torch = pytest.importorskip("torch")
    from train import dist
    from train.config import Data, Lora, Model, TrainConfig, Training
    from train.families import ANY
    from train.model.adapt import adapt
    from train.model.base import BaseModel
    from train.model.load import load_for_training, load_tokenizer
    from train.training.strategy import build

    numbers = Training(
        global_batch_size=1, micro_batch_size=1, gradient_accumulation_steps=1, engine=engine,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    config = TrainConfig(
        run_id="r", device="cpu", model=Model(path=with_dropout), data=Data(train="x"), lora=Lora(r=4), train=numbers
    )
    world = dist.from_environment("cpu", {})
    base = BaseModel(directory=Path(with_dropout), name=with_dropout, revision=None)
    loaded = load_for_training(config, world, base, engine, None, load_tokenizer(config, base))
    model, _ = adapt(config, loaded, base, ANY)
    strategy = build(config, world, model, loaded.dtype, None, engine)
    assert all(module.training for module in model.modules())
    seen: list[Any] = []
    model.get_base_model().transformer.h[0].attn.register_forward_hook(lambda *_: seen.append(1))
    ids = torch.arange(5, 25)[None]
    strategy.backward({"input_ids": ids, "labels": ids}, 1.0, last=True)
    assert len(seen) == passes

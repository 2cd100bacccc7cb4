"""DeepSpeed itself accepts the rendered configuration at the planned world size."""

from __future__ import annotations

import json
import os
import types

import pytest

from launcher.render import texts
from tests.beds.plans import make

pytestmark = pytest.mark.train


@pytest.fixture
def accept(monkeypatch):
    """accept(config, world_size): the configuration as DeepSpeed parses it, in a world of that size."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime import config as module

    def accept(config, world_size):
        world = types.SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: world_size)
        monkeypatch.setattr(module, "dist", world)
        return module.DeepSpeedConfig(config)

    return accept


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("device", "hosts"), [("cpu", (("a", 1), ("b", 3))), ("cuda", (("a", 8), ("b", 8)))])
def test_deepspeed_accepts_the_rendered_configuration(accept, stage, device, hosts):
    plan = make(
        f"train.zero_stage={stage}",
        "train.global_batch_size=64",
        *(["train.offload=cpu"] if stage == 3 and device == "cuda" else []),
        device=device,
        hosts=hosts,
        gpu_memory_bytes=80 * 2**30 if device == "cuda" else None,
    )
    config = json.loads(texts.render(plan)["ds_config.json"])
    world = sum(slots for _, slots in hosts)
    parsed = accept(config, world)
    assert parsed.train_batch_size == 64
    assert parsed.train_micro_batch_size_per_gpu * parsed.gradient_accumulation_steps * world == 64
    assert parsed.zero_config.stage == stage
    assert parsed.optimizer_name is None


def test_deepspeed_refuses_another_world_size(accept):
    config = json.loads(texts.render(make("train.zero_stage=2"))["ds_config.json"])
    with pytest.raises(AssertionError, match="train_batch_size"):
        accept(config, 3)

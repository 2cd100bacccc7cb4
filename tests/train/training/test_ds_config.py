"""DeepSpeed itself accepts the rendered configuration at the planned world size."""

from __future__ import annotations

import json
import os
import types
from typing import Any

import pytest

from launcher.job.deepspeed.ds_keys import (
    BOOL,
    COUNT,
    DTYPE,
    KEYS,
    LIST,
    NUMBER,
    OTHER_NAMES,
    POSITIVE,
    SWITCH,
    TEXT,
)
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


def test_deepspeed_accepts_every_key_that_is_passed_on(accept):
    """Each with an odd value of its kind, in the stages that have it."""
    odd = {
        BOOL: True,
        SWITCH: None,
        COUNT: 7,
        POSITIVE: 7,
        NUMBER: 0.5,
        TEXT: "/tmp/x",
        DTYPE: "fp32",
        LIST: ["all_reduce"],
    }
    for stage in (2, 3):
        content: dict[str, Any] = {"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}}}
        if stage == 3:
            content["zero_optimization"]["offload_param"] = {"device": "cpu"}
        for name, rule in KEYS.items():
            if rule.fate == "passed" and rule.accepted is not None:
                *blocks, last = name.split(".")
                tree = content
                for block in blocks:
                    tree = tree.setdefault(block, {})
                tree[last] = odd[rule.accepted]
        content["comms_logger"]["enabled"] = content["flops_profiler"]["enabled"] = False
        plan = make(tree={"train.ds_config": content, "train.engine": "peft"})
        config = json.loads(texts.render(plan)["ds_config.json"])
        parsed = accept(config, 2)
        assert parsed.zero_config.stage == stage
        assert parsed.zero_config.max_live_parameters == 7
        assert parsed.steps_per_print == 7
        assert parsed.zero_config.offload_optimizer.device == "cpu"
        assert (parsed.zero_config.offload_param is not None) == (stage == 3)


def test_the_table_has_every_key_of_the_installed_deepspeed(accept):
    from deepspeed.runtime import config as module
    from deepspeed.runtime import precision_config
    from deepspeed.runtime.zero import config as zero
    from deepspeed.runtime.zero import offload_config

    def names(model, prefix):
        return {f"{prefix}{field.alias or name}" for name, field in model.model_fields.items()}

    theirs = (
        names(zero.DeepSpeedZeroConfig, "zero_optimization.")
        | names(offload_config.DeepSpeedZeroOffloadOptimizerConfig, "zero_optimization.offload_optimizer.")
        | names(offload_config.DeepSpeedZeroOffloadParamConfig, "zero_optimization.offload_param.")
        | names(precision_config.DeepSpeedBF16Config, "bf16.")
        | names(precision_config.DeepSpeedFP16Config, "fp16.")
        | set(module._REMOVED_TOP_LEVEL_CONFIG_KEYS)
        | {f"zero_optimization.{name}" for name in module._REMOVED_ZERO_CONFIG_KEYS}
    )
    translated = {"zero_optimization.cpu_offload", "zero_optimization.cpu_offload_param"}
    known = {*KEYS, *OTHER_NAMES, *translated}
    blocks = {name.rpartition(".")[0] for name in KEYS}
    assert theirs - known - blocks == set()

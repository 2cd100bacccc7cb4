"""train.json: planner, rules, renderer and training program agree on what a job gets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import CompatibilityError
from launcher.plan.candidates import Candidate
from tests.beds.planning import (
    BAICHUAN_7B,
    BAICHUAN_13B,
    CHATGLM2,
    GLM4,
    MODELS,
    answer,
    applied,
    on,
    rendered,
    sample,
)
from tests.beds.plans import make
from train import compat, families
from train.memory import GIB, SHAPES


@pytest.mark.parametrize(
    ("config", "settings", "engine"),
    [
        (CHATGLM2, (), "fused"),
        (CHATGLM2, ("lora.dropout=0.1",), "peft"),
        (GLM4, (), "fused"),
        (BAICHUAN_13B, (), "peft"),
        (BAICHUAN_7B, (), "fused"),
        (BAICHUAN_7B, ("train.zero_stage=3", "model.quantization=nf4"), "peft"),
    ],
    ids=str,
)
def test_every_family_gets_an_engine_that_can_train_it(config: dict[str, Any], settings: tuple[str, ...], engine: str):
    """On a GPU with everything `auto`: the rules accept what the planner chooses."""
    plan = make(
        "train.global_batch_size=64", *settings, device="cuda", gpu_memory_bytes=80 * GIB, gpu_name="NVIDIA H100",
        compute_capability=9.0, hosts=(("localhost", 2),), model_config=config,
    )  # fmt: skip
    assert plan.train is not None
    assert plan.train.train.engine == engine


_LARGE = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24,
    "num_key_value_heads": 8, "vocab_size": 100000, "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "settings", "capability", "packing", "why"),
    [
        ({"model_type": "olmo3"}, (), 9.0, "pack", "share rows"),
        ({"model_type": "llama"}, ("lora.dora=true", "train.engine=peft"), 9.0, "pack", "share rows"),
        ({"model_type": "gemma2"}, (), 9.0, "bucket", "caps the scores, so packed rows would need a mask"),
        ({"model_type": "qwen3_5"}, (), 9.0, "bucket", "layers without attention carry"),
        ({"model_type": "never_heard_of"}, (), 9.0, "bucket", "attention is unknown"),
        ({"model_type": "olmo3", "attention_dropout": 0.1}, (), 9.0, "bucket", "its attention has dropout"),
        ({"model_type": "olmo3"}, ("model.dtype=float32",), 9.0, "bucket", "16 bits"),
        ({"model_type": "olmo3"}, (), 7.5, "bucket", "Ampere"),
        ({"model_type": "olmo3"}, ("train.engine=unsloth",), 9.0, "bucket", "of like lengths"),
    ],
    ids=str,
)
def test_plain_transformers_packs_where_attention_goes_by_the_lengths_of_records(
    config: dict[str, Any], settings: tuple[str, ...], capability: float, packing: str, why: str
) -> None:
    plan = make(
        "train.global_batch_size=64", "data.max_length=1024", *settings, device="cuda", gpu_memory_bytes=80 * GIB,
        gpu_name="GPU", compute_capability=capability, hosts=(("localhost", 1),), model_config={**_LARGE, **config},
    )  # fmt: skip
    assert plan.train is not None
    assert plan.train.train.packing == packing
    (reason,) = (one.reason for one in plan.reasons if one.setting == "train.packing")
    assert why in reason


def test_a_plan_has_the_chosen_settings_and_the_predicted_memory():
    config = {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    }  # fmt: skip
    plan = make("train.global_batch_size=64", device="cuda", gpu_memory_bytes=24 * GIB, gpu_name="NVIDIA RTX 3090",
                compute_capability=8.6, hosts=(("localhost", 1),), tree={"model.path": "llama3-8b"})  # fmt: skip
    assert plan.train is not None
    assert plan.train.train.gradient_checkpointing is True
    assert (plan.train.train.engine, plan.train.train.packing) == ("fused", "pack")
    assert plan.train.predicted_peak_bytes is not None
    assert plan.train.predicted_peak_bytes < 24 * GIB
    assert config["hidden_size"] == SHAPES["llama3-8b"].hidden


def test_planner_gate_renderer_and_training_program_agree_on_any_job(tmp_path: Path) -> None:
    seen = {"fits": 0, "changes": 0, "refused": 0}
    for model, settings, situation in sample(200):
        case = (model, settings, situation)
        outcome = answer(model, settings, situation)
        if isinstance(outcome, Candidate):
            seen["fits"] += 1
            assert situation.holds(outcome.cost.memory), case
            config = rendered(model, settings, situation, tmp_path)
            numbers = config.train
            ranks = situation.world_size
            product = numbers.micro_batch_size * numbers.gradient_accumulation_steps * ranks
            wanted = settings.get("train.global_batch_size", "auto")
            assert product == numbers.global_batch_size == (wanted if wanted in (64, 96, 10, 1) else product), case
            assert (numbers.micro_batch_size, numbers.zero_stage, numbers.packing, config.model.dtype) == (
                outcome.batch.micro_batch_size, outcome.zero_stage, outcome.packing, outcome.dtype,
            ), case  # fmt: skip
            assert config.predicted_peak_bytes == outcome.cost.memory.total, case
            held = MODELS[model]
            family = families.of_type(SHAPES[model].family) if held is None else families.family_of(held)
            asked_there = compat.Combination.of(config, family, situation.capability)
            assert compat.check(asked_there) == [], case
            assert compat.engine_for(asked_there)[0] == outcome.engine, case
        else:
            assert outcome.hint, case
            with pytest.raises(type(outcome), match=re.escape(str(outcome))):
                rendered(model, settings, situation, tmp_path)
            for change in getattr(outcome, "changes", ()):
                seen["changes"] += 1
                again = answer(model, *applied(change.text, settings, situation))
                assert isinstance(again, Candidate), (case, change.text, again)
            if type(outcome) is CompatibilityError:
                seen["refused"] += 1
                again = answer(model, *applied(outcome.hint, settings, situation))
                assert type(again) is not CompatibilityError, (case, outcome.hint, again)
    assert min(seen.values()) > 20, seen


def test_the_engine_stays_open_where_unsloth_may_be_missing(tmp_path: Path) -> None:
    """The planner counts on Unsloth, but the training program takes PEFT where it is not installed."""
    outcome = answer("llama", {"lora.dropout": 0.1}, on("h100"))
    assert isinstance(outcome, Candidate)
    assert outcome.engine == "unsloth"
    assert rendered("llama", {"lora.dropout": 0.1}, on("h100"), tmp_path).train.engine == "auto"


def test_offloading_uses_zero_also_for_an_unknown_model() -> None:
    run = make("train.offload=cpu", device="cuda", gpu_memory_bytes=None, model_config={"model_type": "mixtral"})
    assert run.train is not None
    assert run.train.train.zero_stage == 2


def test_an_unknown_compute_capability_follows_from_the_name_of_the_gpu() -> None:
    run = make(device="cuda", hosts=(("h", 1),), gpu_memory_bytes=32 * GIB, gpu_name="Tesla V100-SXM2-32GB",
               tree={"model.path": "llama3.2-1b"})  # fmt: skip
    assert run.train is not None
    assert run.train.model.dtype == "float16"
    with pytest.raises(CompatibilityError, match="bfloat16"):
        make("model.dtype=bfloat16", device="cuda", gpu_memory_bytes=32 * GIB, gpu_name="Tesla V100-SXM2-32GB")


PHI3 = {
    "model_type": "phi3", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "vocab_size": 1000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        (CHATGLM2, ("lora.dropout=0.1",), "the fused layers do not support LoRA dropout"),
        (CHATGLM2, (), "fused layers here, the fastest path measured"),
        (PHI3, (), "fused layers here, the fastest path measured"),
        ({**PHI3, "rope_scaling": {"type": "longrope"}}, (), "its rotary embedding depends on length"),
        ({**PHI3, "model_type": "olmo3"}, (), "Unsloth was not measured to be faster with it"),
        (CHATGLM2, ("train.engine=peft",), ""),
    ],
    ids=["dropout", "fused", "phi3", "longrope", "olmo3", "named"],
)
def test_train_json_has_the_reason_of_an_engine_that_the_plan_chose(
    config: dict[str, Any], settings: tuple[str, ...], words: str
) -> None:
    plan = make(
        "train.global_batch_size=64", *settings, device="cuda", gpu_memory_bytes=80 * GIB, gpu_name="NVIDIA H100",
        compute_capability=9.0, hosts=(("localhost", 1),), model_config=config,
    )  # fmt: skip
    assert plan.train is not None
    assert words in plan.train.engine_reason
    assert bool(plan.train.engine_reason) is bool(words)

"""The fastest setting that fits a GPU, and the smallest changes where none fits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from launcher.errors import BatchError, CompatibilityError
from launcher.job.load import convert
from launcher.job.spec import JobSpec
from launcher.plan import gpus
from launcher.plan.candidates import Candidate
from launcher.plan.changes import DoesNotFit
from launcher.plan.fastest import choose
from launcher.plan.situation import Situation, model_of
from tests.beds.planning import MODELS, answer, on
from train import memory
from train.memory import GIB


def job(**sections: dict[str, Any]) -> JobSpec:
    return convert({"model": {"path": "llama3-8b"}, **sections}, where="test")


def chosen(shape: str, gpu: str, world: int = 1, **sections: dict[str, Any]) -> Candidate:
    return choose(job(**sections), model_of(shape, None), on(gpu, world))[0]


def outcome(shape: str, gpu: str, world: int) -> tuple[Candidate | None, DoesNotFit | None]:
    try:
        return chosen(shape, gpu, world), None
    except DoesNotFit as refusal:
        return None, refusal


def test_a_large_gpu_keeps_its_activations_and_a_small_one_recomputes_them():
    assert chosen("llama3-8b", "h200").checkpointing is False
    small, reasons = choose(job(), model_of("llama3-8b", None), on("3090"))
    assert small.checkpointing is True
    assert "without it a pass needs" in next(r.reason for r in reasons if "checkpointing" in r.setting)


@pytest.mark.parametrize("gpu", sorted(gpus.GPUS))
@pytest.mark.parametrize("shape", ["llama3.2-1b", "qwen3-8b", "llama3-70b"])
def test_what_is_chosen_always_fits_and_divides_the_batch(gpu: str, shape: str):
    for world in (1, 8):
        choice, refusal = outcome(shape, gpu, world)
        if choice is None:
            assert refusal is not None
            assert not on(gpu, world).holds(refusal.smallest)
            continue
        assert on(gpu, world).holds(choice.cost.memory)
        solved = choice.batch
        assert solved.micro_batch_size * solved.gradient_accumulation_steps * world == 64


def test_weights_too_large_for_a_gpu_are_shared_by_the_ranks():
    assert chosen("llama3-8b", "h100", 8).zero_stage == 0
    assert chosen("llama3-70b", "h100", 8).zero_stage == 3


def test_a_job_that_does_not_fit_says_what_would_make_it_fit():
    with pytest.raises(DoesNotFit) as caught:
        chosen("llama3-70b", "h100")
    changes = [change.text for change in caught.value.changes]
    assert changes[0] == "model.quantization: nf4"
    assert any("GPUs like this one" in text for text in changes)
    assert "model.quantization: nf4" in str(caught.value.hint)
    assert all(change.candidate.cost.memory.total < caught.value.smallest.total for change in caught.value.changes[:1])


def test_the_first_change_is_the_one_that_costs_least():
    with pytest.raises(DoesNotFit) as caught:
        chosen("llama3-8b", "a100-40", train={"gradient_checkpointing": False, "micro_batch_size": 8})
    assert caught.value.changes[0].text == "train.gradient_checkpointing: true"
    with pytest.raises(DoesNotFit) as caught:
        chosen("llama3-8b", "a100-80", train={"gradient_checkpointing": False, "micro_batch_size": 32})
    assert [c.text for c in caught.value.changes][:2] == [
        "train.gradient_checkpointing: true",
        "train.micro_batch_size: 8",
    ]


def test_a_batch_that_the_ranks_cannot_share_is_refused_before_memory_is_predicted():
    with pytest.raises(BatchError, match="cannot be shared"):
        chosen("llama3-70b", "t4", 7, train={"global_batch_size": 64})


def test_a_setting_that_the_user_fixed_stays():
    fixed = job(train={"micro_batch_size": 2, "gradient_checkpointing": True, "engine": "peft"})
    best, reasons = choose(fixed, model_of("qwen3-8b", None), on("h200"))
    assert (best.batch.micro_batch_size, best.checkpointing, best.engine) == (2, True, "peft")
    assert not {r.setting for r in reasons} & {"train.micro_batch_size", "train.gradient_checkpointing"}


@pytest.mark.parametrize(
    ("sections", "engine"),
    [
        ({}, "fused"),
        ({"lora": {"dropout": 0.1}}, "unsloth"),
        ({"lora": {"dora": True}}, "peft"),
        ({"model": {"quantization": "int8"}}, "peft"),
        ({"train": {"zero_stage": 3}}, "fused"),
        ({"train": {"zero_stage": 3}, "model": {"quantization": "nf4"}}, "peft"),
        ({"lora": {"target_modules": ".*_proj"}}, "unsloth"),
    ],
)
def test_the_engine_follows_from_the_job(sections: dict[str, Any], engine: str):
    assert chosen("llama3-8b", "h200", **sections).engine == engine


def test_a_gpu_without_bfloat16_trains_without_the_fused_layers():
    old = Situation(1, 32 * GIB, "old", 9e13, compute_capability=7.5)
    best, _ = choose(job(), model_of("llama3.2-1b", None), old)
    assert (best.engine, best.dtype) == ("unsloth", "float16")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("model", MODELS)
def test_more_memory_never_makes_a_job_unfit_or_slower(model: str, quantization: str) -> None:
    best = 0.0
    for gib in (6, 8, 12, 16, 24, 40, 48, 80, 96, 128, 192):
        outcome = answer(model, {"model.quantization": quantization}, Situation(2, gib * GIB))
        assert isinstance(outcome, (Candidate, DoesNotFit))
        assert isinstance(outcome, Candidate) or not best
        if isinstance(outcome, Candidate):
            assert outcome.cost.tokens_per_second >= 0.99 * best  # a hundredth is given up for less memory or no ZeRO
            best = max(best, outcome.cost.tokens_per_second)


@pytest.mark.parametrize("setting", ["lora.dora", "lora.init"])
def test_zero_is_only_ever_chosen_where_the_job_can_have_it(setting: str) -> None:
    """DoRA and PiSSA need whole weights: a model that only ZeRO-3 could hold does not fit."""
    wanted = {setting: {"lora.dora": True, "lora.init": "pissa"}[setting]}
    assert isinstance(answer("70b", wanted, on("h100", 8)), DoesNotFit)
    fused = answer("70b", {"train.engine": "fused", "model.quantization": "nf4"}, on("4090", 8))
    assert isinstance(fused, DoesNotFit)
    assert "train.engine: auto" in str(fused.hint)


def test_a_change_names_all_that_must_be_changed() -> None:
    outcome = answer("llama", {"train.gradient_checkpointing": False, "train.micro_batch_size": 64}, on("4090"))
    assert isinstance(outcome, DoesNotFit)
    nf4 = next(change.text for change in outcome.changes if "nf4" in change.text)
    assert "train.gradient_checkpointing: auto" in nf4
    assert "train.micro_batch_size: auto" in nf4


def test_a_suggested_larger_gpu_is_planned_with_its_own_values() -> None:
    outcome = answer("llama", {}, Situation.of(1, 16 * GIB, "NVIDIA V100 16GB"))
    assert isinstance(outcome, DoesNotFit)
    larger = next(change for change in outcome.changes if "a GPU of" in change.text)
    assert "RTX 3090" in larger.text or "A10" in larger.text or "L4" in larger.text
    assert (larger.candidate.dtype, larger.candidate.engine) == ("bfloat16", "fused")


@pytest.mark.parametrize("model", ["dynamic", "wrapped", "untyped", "gemma"])
def test_a_model_without_fused_layers_is_not_planned_for_them(model: str) -> None:
    outcome = answer(model, {}, on("h100"))
    assert isinstance(outcome, Candidate)
    assert outcome.engine in ("unsloth", "peft")
    refused = answer(model, {"train.engine": "fused"}, on("h100"))
    assert isinstance(refused, CompatibilityError)
    assert "train.engine: auto" in str(refused.hint)


def test_modules_that_are_trained_whole_are_counted() -> None:
    plain, whole = (
        answer("llama", {"train.engine": "peft", "lora.modules_to_save": names}, on("h200"))
        for names in ((), ("embed_tokens", "lm_head"))
    )
    assert isinstance(plain, Candidate)
    assert isinstance(whole, Candidate)
    trained = 2 * 128256 * 4096
    assert whole.cost.memory.optimizer - plain.cost.memory.optimizer == 8 * trained


def across(hosts: int, shape: str, gpu: str, world: int, *, each: int = 1, **sections: dict[str, Any]) -> Candidate:
    """`each`: the fewest ranks of a host."""
    situation = replace(on(gpu, world), hosts=hosts, ranks_per_host=each)
    return choose(job(**sections), model_of(shape, None), situation)[0]


def test_zero_3_across_hosts_takes_one_pass_where_memory_allows() -> None:
    """Each pass gathers the weights over the network (docs/nodes.md)."""
    long = {"data": {"max_length": 512}, "train": {"global_batch_size": 192, "zero_stage": 3}}
    assert across(1, "llama3.2-1b", "h100", 2, **long).batch.gradient_accumulation_steps > 1
    one = across(2, "llama3.2-1b", "h100", 2, **long)
    assert one.batch.gradient_accumulation_steps == 1
    assert on("h100", 2).holds(one.cost.memory)


@pytest.mark.parametrize("gpu", ["3090", "a100-40", "h100"])
@pytest.mark.parametrize("shape", ["llama3.2-1b", "qwen3-8b", "qwen2.5-14b", "llama3-70b"])
def test_zero_3_is_never_chosen_across_hosts_where_the_model_fits_without(shape: str, gpu: str) -> None:
    """Recomputing activations costs a third; gathering the weights over Ethernet costs several times as much."""
    fits_without = False
    with suppress(DoesNotFit):
        across(2, shape, gpu, 8, train={"zero_stage": 2})
        fits_without = True
    with suppress(DoesNotFit):
        assert (across(2, shape, gpu, 8).zero_stage < 3) == fits_without


def test_the_ranks_of_each_host_share_the_weights_where_one_host_holds_them() -> None:
    zero_3 = {"train": {"zero_stage": 3}}
    inside = across(2, "llama3-8b", "h100", 4, each=2, **zero_3)
    assert inside.zero_group == "host"
    everywhere = across(2, "llama3-8b", "h100", 4, each=2, train={"zero_stage": 3, "zero_group": "all"})
    assert everywhere.zero_group == "all"
    assert inside.cost.tokens_per_second > 2 * everywhere.cost.tokens_per_second
    layers = memory.SHAPES["llama3-8b"]
    shares = 2 * layers.layers * layers.layer_weights
    assert inside.cost.memory.weights - everywhere.cost.memory.weights == pytest.approx(shares / 4, rel=1e-3)
    assert across(2, "llama3-70b", "h100", 4, each=2).zero_group == "all"
    assert across(2, "llama3-70b", "h100", 16, each=8).zero_group == "host"


@pytest.mark.parametrize(("hosts", "each", "more"), [(1, 4, {}), (4, 1, {}), (2, 2, {"engine": "peft"})])
def test_without_several_hosts_with_several_ranks_there_is_no_group_to_choose(
    hosts: int, each: int, more: dict[str, Any]
) -> None:
    train = {"zero_stage": 3, "zero_group": "host", **more}
    assert across(hosts, "llama3.2-1b", "h100", 4, each=each, train=train).zero_group == "auto"

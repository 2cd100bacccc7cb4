"""What `auto` means: one list of settings, each with its value and its reason."""

from __future__ import annotations

import pytest

from launcher.job.explain import known_keys
from launcher.job.spec import JobSpec
from launcher.plan.autos import RULES, Case, reasons_of, settled
from launcher.plan.candidates import candidates_of
from launcher.plan.fastest import choose
from launcher.plan.situation import Situation, model_of
from tests.beds.planning import on
from tests.beds.plans import make

WHILE_IT_RUNS = {"model.thinking", "train.hang_timeout", "train.checkpoint_copies", "model.rope_factor"}
"""Settings that the training program decides: by the records, by the time of the steps, by the model's positions."""


def test_every_setting_that_a_job_may_leave_open_has_its_rule():
    spec = JobSpec()
    open_ = {key for key in known_keys() if key.startswith(("model.", "train.")) and is_auto(spec, key)}
    assert {rule.setting for rule in RULES} == open_ - WHILE_IT_RUNS


def is_auto(spec: JobSpec, key: str) -> bool:
    section, _, name = key.partition(".")
    return getattr(getattr(spec, section), name) == "auto"


@pytest.mark.parametrize("place", [on("h100", 8), on("3090"), Situation(2, 0, device="cpu"), Situation(2, 0)])
@pytest.mark.parametrize("name", ["llama3-8b", "a/model-that-nobody-knows"])
def test_every_value_of_every_open_setting_has_a_reason(name, place):
    spec, model = JobSpec(), model_of(name, None)
    candidates = tuple(candidates_of(spec, place, model))
    for best in candidates:
        reasons = reasons_of(Case(spec, place, best, candidates))
        assert all(reason.reason for reason in reasons)
        left_open = {rule.setting for rule in RULES if rule.value(best) == "auto"}
        assert {reason.setting for reason in reasons} == {rule.setting for rule in RULES} - left_open


@pytest.mark.parametrize("name", ["llama3-8b", "a/model-that-nobody-knows"])
@pytest.mark.parametrize(("gpu", "warned"), [("h100", True), ("v100-32", False)])
def test_float16_is_warned_of_on_gpus_with_bfloat16_and_not_refused(name, gpu, warned):
    spec = JobSpec().with_values({"model.dtype": "float16"})
    best, reasons = choose(spec, model_of(name, None), on(gpu))
    assert best.dtype == "float16"
    warnings = [reason for reason in reasons if reason.setting == "model.dtype"]
    assert [(reason.value, "bfloat16" in reason.reason) for reason in warnings] == [("float16", True)] * warned


def test_a_setting_that_the_job_fixes_stays_and_has_no_reason():
    spec = JobSpec().with_values({"train.zero_stage": 3, "train.packing": "none"})
    candidates = tuple(candidates_of(spec, on("h100", 8), model_of("llama3-8b", None)))
    reasons = reasons_of(Case(spec, on("h100", 8), candidates[0], candidates))
    assert {"train.zero_stage", "train.packing"}.isdisjoint(reason.setting for reason in reasons)
    given = settled(spec, candidates[0])
    assert (given.train.zero_stage, given.train.packing) == (3, "none")


def test_every_automatic_choice_has_its_reason():
    plan = make()
    given = {reason.setting for reason in plan.reasons}
    assert {"model.dtype", "train.zero_stage", "train.packing", "train.micro_batch_size"} <= given
    assert all(reason.reason for reason in plan.reasons)
    fixed = make("train.zero_stage=2", "model.dtype=bfloat16")
    assert {"train.zero_stage", "model.dtype"}.isdisjoint(reason.setting for reason in fixed.reasons)


@pytest.mark.parametrize(("capability", "dtype"), [(7.5, "float16"), (8.0, "bfloat16"), (None, "bfloat16")])
def test_a_gpu_trains_in_bfloat16_if_it_has_it(capability, dtype):
    plan = make(device="cuda", compute_capability=capability, gpu_name="X", gpu_memory_bytes=2**34)
    assert plan.train is not None
    assert plan.train.model.dtype == dtype

"""The fastest setting that fits the GPU with a margin."""

from __future__ import annotations

import functools

from msgspec import structs

from launcher.errors import UsageError
from launcher.job.spec import JobSpec
from launcher.plan.autos import Case, reasons_of
from launcher.plan.candidates import Candidate, candidates_of
from launcher.plan.changes import does_not_fit
from launcher.plan.situation import Model, Situation
from launcher.plan.types import Reason


def choose(spec: JobSpec, model: Model, situation: Situation) -> tuple[Candidate, tuple[Reason, ...]]:
    """The fastest setting that fits, and why each open setting has its value.

    Raises DoesNotFit with the changes that would help, CompatibilityError for settings that cannot work together, and
    BatchError.
    """
    candidates = tuple(candidates_of(spec, situation, model))
    fits = [candidate for candidate in candidates if situation.holds(candidate.cost.memory)]
    if not fits:
        raise does_not_fit(spec, situation, candidates, functools.partial(candidates_of, model=model))
    best = best_of(fits)
    return best, reasons_of(Case(spec, situation, best, candidates))


FP8_PARAMETERS = 6_000_000_000
"""The smallest model that was seen to gain from fp8. A model of 135 million parameters lost a quarter of its speed."""


def in_fp8(spec: JobSpec, model: Model, situation: Situation, best: Candidate) -> float | None:
    """How many times as fast as `best` the job would be with model.quantization: fp8, or None.

    None if the job says how it is quantized, if it cannot run in fp8, or if the model is smaller than those that were
    measured (docs/fp8.md). `auto` never chooses fp8, because fp8 changes the numbers that are trained on.
    """
    if spec.model.quantization != "none" or situation.capability is None or situation.device == "cpu":
        return None
    if model.shape is None or model.shape.parameters < FP8_PARAMETERS:
        return None
    other = structs.replace(spec, model=structs.replace(spec.model, quantization="fp8"))
    try:
        speed = choose(other, model, situation)[0].cost.tokens_per_second
    except UsageError:
        return None
    return speed / best.cost.tokens_per_second


def best_of(fits: list[Candidate]) -> Candidate:
    """Of those within 1% of the fastest, choose the lowest ZeRO stage, then the lowest memory."""
    fastest = max(candidate.cost.tokens_per_second for candidate in fits)
    equals = [candidate for candidate in fits if candidate.cost.tokens_per_second >= 0.99 * fastest]
    return min(equals, key=lambda candidate: (candidate.zero_stage, candidate.cost.memory.total))

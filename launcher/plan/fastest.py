"""The fastest setting that fits the GPU with a margin."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace

from msgspec import structs

from launcher.errors import UsageError
from launcher.job.network_rate import bytes_per_second
from launcher.job.spec import JobSpec
from launcher.plan.autos import Case, reasons_of
from launcher.plan.between_hosts import rate_text
from launcher.plan.candidates import Candidate, candidates_of
from launcher.plan.changes import does_not_fit
from launcher.plan.situation import Model, Situation
from launcher.plan.types import Reason


def choose(spec: JobSpec, model: Model, situation: Situation) -> tuple[Candidate, tuple[Reason, ...]]:
    """The fastest setting that fits, and why each open setting has its value.

    Raises DoesNotFit with the changes that would help, CompatibilityError for settings that cannot work together, and
    BatchError.
    """
    if spec.network != "auto":
        situation = replace(situation, network=bytes_per_second(spec.network))
    candidates = tuple(candidates_of(spec, situation, model))
    fits = [candidate for candidate in candidates if situation.holds(candidate.cost.memory)]
    if not fits:
        raise does_not_fit(spec, situation, candidates, functools.partial(candidates_of, model=model))
    best = best_of(fits)
    reasons = reasons_of(Case(spec, situation, best, candidates)) + _of_experts(spec, model)
    return best, reasons + network_warning(spec, model, situation, best)


SLOW = 1.3
"""How many times as long as with another stage a step must take for a warning."""
MOST_WAITING = 0.3
"""Share of a step that it may wait for the network without a warning."""
STAGES = {0: "DDP", 1: "ZeRO-1", 2: "ZeRO-2", 3: "ZeRO-3"}


def network_warning(spec: JobSpec, model: Model, situation: Situation, best: Candidate) -> tuple[Reason, ...]:
    """What the network makes of the stage that the job names, or of the whole step; nothing where that is little."""
    cost, stage = best.cost, best.zero_stage
    if not cost.step_seconds or not cost.traffic.total:
        return ()
    rate = rate_text(situation.network)
    sends = f"{STAGES[stage]} sends {cost.traffic.total / 1e9:.3g} GB per step between hosts"
    if stage == 3 and spec.train.zero_stage == 3 and spec.train.offload_param == "none":
        other = structs.replace(spec, train=structs.replace(spec.train, zero_stage=2))
        with contextlib.suppress(UsageError):
            slower = choose(other, model, situation)[0].cost.tokens_per_second / cost.tokens_per_second
            if slower >= SLOW:
                told = f"{sends}: {slower:.1f} times slower than ZeRO-2 here, at {rate}"
                return (Reason(setting="train.zero_stage", value=stage, reason=told),)
    if cost.waits_seconds < MOST_WAITING * cost.step_seconds:
        return ()
    told = f"{sends}, and waits {cost.waits_seconds:.2f} of {cost.step_seconds:.2f} s for it, at {rate}"
    return (Reason(setting="network", value=spec.network, reason=told),)


def is_of_network(reason: Reason) -> bool:
    """Whether this is the warning above, which people should see before the run starts."""
    return " per step between hosts" in reason.reason


def stages_between_hosts(spec: JobSpec, model: Model, situation: Situation) -> dict[int, Candidate | None]:
    """The fastest setting of DDP, ZeRO-2 and ZeRO-3; None: it fits not, or works not."""
    found: dict[int, Candidate | None] = {}
    for stage in (0, 2, 3):
        found[stage] = None
        with contextlib.suppress(UsageError):
            asked = structs.replace(spec, train=structs.replace(spec.train, zero_stage=stage))
            found[stage] = choose(asked, model, situation)[0]
    return found


def _of_experts(spec: JobSpec, model: Model) -> tuple[Reason, ...]:
    """What LoRA does to the routers of a mixture of experts."""
    if not model.family.experts:
        return ()
    targets, weight = spec.lora.target_modules, spec.train.router_loss
    told = "routers stay frozen, and no loss balances the load of the experts (router loss: weight 0)"
    if weight:
        shown = "the model's own" if weight == "auto" else f"{weight:g}"
        told = f"routers stay frozen; a loss balances the load of the experts through the adapters (weight: {shown})"
    return (Reason(setting="lora.target_modules", value=targets, reason=told),)


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

"""The combinations of values that a job's open settings can take, and what each of them costs.

They are few: micro batches that divide the batch, checkpointing on or off, three ZeRO stages. So every combination that
train/compat.py lets pass is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from launcher.errors import CompatibilityError
from launcher.job.spec import JobSpec
from launcher.plan.batch import Batch, batches_of, global_batch_of
from launcher.plan.cost import NOT_KNOWN, Cost, cost_of
from launcher.plan.situation import Model, Situation
from train import compat
from train.memory import shares_itself

ENOUGH_TOKENS = 32_768
"""A pass over more tokens is no faster: the fixed cost of a pass is 1% by then."""
USUAL_MICRO_BATCH = {"cpu": 8, "cuda": 16}
"""The largest micro batch where memory cannot be predicted."""


@dataclass(frozen=True)
class Candidate:
    """One value for every setting that a job may leave open."""

    batch: Batch
    engine: str
    """`auto` where memory cannot be predicted: the training program chooses."""
    dtype: str
    checkpointing: bool
    zero_stage: int
    packing: str
    zero_group: str = "auto"
    """Which ranks share the weights; `auto` where there is no choice."""
    cost: Cost = NOT_KNOWN
    why_engine: str = ""
    """Why train/compat.py chose the engine."""
    why_apart: str = ""
    """Why records do not share rows, where plain transformers would have to mask them or could not."""


def candidates_of(spec: JobSpec, situation: Situation, model: Model) -> Iterator[Candidate]:
    """Every combination that can work, whether it fits the GPU or not.

    Exactly one where the GPU's memory or the model's shape is not known, because then nothing can be compared. Raises
    BatchError, and CompatibilityError if no combination can work.
    """
    shape = model.shape if situation.gpu_memory_bytes else None
    stages = _zero_stages(spec, situation, known=shape is not None)
    checkpointing = _checkpointing(spec, situation, known=shape is not None)
    largest = _largest_micro_batch(spec, situation, stages, known=shape is not None)
    combinations = [_combination(spec, model, situation, stage) for stage in stages]
    passing = _passing(combinations, spec.data.max_length, model, known=shape is not None)
    why = {settings.zero_stage: compat.engine_for(settings)[1] for settings in combinations}
    size = global_batch_of(spec.train, situation.world_size, spec.data.max_length)
    batches = batches_of(size, spec.train.micro_batch_size, situation.world_size, largest)
    for batch, recompute, settings in itertools.product(batches if shape else batches[-1:], checkpointing, passing):
        packing, apart = settings.packing, _why_apart(settings)
        if packing == "auto":
            packing = "pack" if shape and settings.engine in ("fused", "peft") and not apart else "bucket"
        stage = settings.zero_stage
        found = Candidate(
            batch, settings.engine, settings.dtype, recompute, stage, packing, why_engine=why[stage], why_apart=apart
        )
        for group in _zero_groups(spec, situation, found):
            cost = NOT_KNOWN
            if shape:
                cost = cost_of(spec, shape, situation, batch, found.engine, recompute, found.zero_stage, group)
            yield replace(found, zero_group=group, cost=cost)


def _why_apart(settings: compat.Combination) -> str:
    """Why plain transformers should not pack the records of this model; empty: it should, or the engine is another."""
    if settings.engine != "peft":
        return ""
    family = settings.family
    if not family.packs:
        return family.unpacked or "this model's attention is unknown"
    if family.masked:
        return f"{family.masked}, so packed rows would need a mask of all pairs of their tokens"
    if settings.dtype == "float32" or (settings.capability is not None and settings.capability < compat.AMPERE):
        return "attention by lengths needs 16 bits and compute capability 8.0 (Ampere)"
    return ""


def _zero_groups(spec: JobSpec, situation: Situation, found: Candidate) -> tuple[str, ...]:
    """Weights can stay inside each host where several hosts have several ranks each, in our own ZeRO-3."""
    if not shares_itself(found.engine, found.zero_stage) or situation.hosts == 1 or situation.ranks_per_host == 1:
        return ("auto",)
    return ("host", "all") if spec.train.zero_group == "auto" else (spec.train.zero_group,)


def _zero_stages(spec: JobSpec, situation: Situation, *, known: bool) -> tuple[int, ...]:
    if spec.train.zero_stage != "auto":
        return (spec.train.zero_stage,)
    if spec.train.offload_param != "none":
        return (3,)
    if spec.train.offload == "cpu":
        return (2, 3) if known else (2,)
    return (0, 2, 3) if known and situation.world_size > 1 else (0,)


def _checkpointing(spec: JobSpec, situation: Situation, *, known: bool) -> tuple[bool, ...]:
    if spec.train.gradient_checkpointing != "auto":
        return (spec.train.gradient_checkpointing,)
    return (False, True) if known else (situation.device == "cuda",)


def _largest_micro_batch(spec: JobSpec, situation: Situation, stages: tuple[int, ...], *, known: bool) -> int:
    if not known:
        return USUAL_MICRO_BATCH[situation.device]
    if situation.hosts > 1 and 3 in stages:  # each pass gathers the weights over the network
        return global_batch_of(spec.train, situation.world_size, spec.data.max_length)
    return max(1, ENOUGH_TOKENS // spec.data.max_length)


def _combination(spec: JobSpec, model: Model, situation: Situation, zero_stage: int) -> compat.Combination:
    """The job's settings with this stage, as train/compat.py looks at them."""
    dtype: str = spec.model.dtype
    if dtype == "auto":
        old = situation.compute_capability is not None and situation.compute_capability < 8.0
        dtype = "float32" if situation.device == "cpu" else "float16" if old else "bfloat16"
    combination = compat.Combination.of(spec, model.family, situation.capability)
    return replace(combination, device=situation.device, dtype=dtype, zero_stage=zero_stage)


def _passing(
    asked: list[compat.Combination], max_length: int, model: Model, *, known: bool
) -> list[compat.Combination]:
    """The combinations that no rule refuses, each with its engine. Raises CompatibilityError if there is none."""
    tried = [replace(settings, engine=compat.engine_for(settings)[0]) if known else settings for settings in asked]
    too_long = compat.check_length(max_length, model.positions)
    refused = [[*too_long, *compat.check(settings)] for settings in tried]
    if all(refused):
        raise CompatibilityError(
            "; ".join(refusal.reason for refusal in refused[0]),
            hint="set " + ", ".join(dict.fromkeys(refusal.instead for refusal in refused[0])),
        )
    return [settings for settings, refusals in zip(tried, refused, strict=True) if not refusals]

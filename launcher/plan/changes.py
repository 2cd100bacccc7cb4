"""The smallest changes that make a job fit its GPU, those that cost the user least first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from launcher.errors import BatchError, CompatibilityError
from launcher.job.spec import JobSpec
from launcher.plan.batch import divisors
from launcher.plan.candidates import Candidate
from launcher.plan.gpus import GPUS
from launcher.plan.situation import Situation
from train.memory import GIB

Idea = tuple[str, JobSpec, Situation]
"""(kind of change, the changed job, where it would run)"""
OPENED = ("train.gradient_checkpointing", "train.micro_batch_size", "train.zero_stage")
"""Settings that the user may have fixed without need."""
Fitting = Callable[[JobSpec, Situation], list[Candidate]]
"""The settings of a job that fit there."""


@dataclass(frozen=True)
class Change:
    """A change that makes the job fit."""

    text: str
    """As the user would type it."""
    candidate: Candidate


def changes_that_fit(spec: JobSpec, situation: Situation, fitting: Fitting) -> Iterator[Change]:
    """Of each kind of change, the smallest that is enough."""
    found: set[str] = set()
    for kind, changed, place in _ideas(spec, situation):
        if kind in found:
            continue
        try:
            fits = fitting(changed, place)
        except (BatchError, CompatibilityError):
            continue
        if fits:
            found.add(kind)
            best = max(fits, key=lambda candidate: candidate.cost.tokens_per_second)
            yield Change(", ".join(_differences(spec, changed, situation, place, best)), best)


def _ideas(spec: JobSpec, situation: Situation) -> Iterator[Idea]:
    """What to try, the least costly for the user first; within one kind, the smallest change first."""
    opened = spec.with_values(dict.fromkeys(OPENED, "auto"))
    bases = [spec] if opened == spec else [spec, opened]
    yield from _other_values(spec, situation)
    if opened != spec:
        yield "auto", opened, situation
    quantized = [base.with_values({"model.quantization": "nf4"}) for base in bases if spec.model.quantization == "none"]
    yield from (("quantization", job, situation) for job in quantized)
    for base in bases:
        lengths = itertools.takewhile(lambda size: size >= 256, (spec.data.max_length >> n for n in range(1, 64)))
        yield from (("length", base.with_values({"data.max_length": length}), situation) for length in lengths)
    more_gpus = [replace(situation, world_size=size) for size in (2, 4, 8, 16, 32, 64) if size > situation.world_size]
    larger = [gpu for gpu in GPUS.values() if gpu.memory_bytes > situation.gpu_memory_bytes * 1.05]
    for base in bases:
        yield from (("gpus", base, place) for place in more_gpus)
    for base in bases:
        for gpu in sorted(larger, key=lambda gpu: gpu.memory_bytes):
            yield "gpu", base, Situation.of(situation.world_size, gpu.memory_bytes, gpu.title)
    yield from (("both", job, place) for job in quantized[-1:] for place in more_gpus)


def _other_values(spec: JobSpec, situation: Situation) -> Iterator[Idea]:
    """Other values of the settings that the user fixed."""
    train = spec.train
    if train.gradient_checkpointing is False:
        yield "checkpointing", spec.with_values({"train.gradient_checkpointing": True}), situation
    if train.micro_batch_size != "auto":
        for size in reversed(divisors(train.global_batch_size // situation.world_size)):
            if size < train.micro_batch_size:
                yield "micro", spec.with_values({"train.micro_batch_size": size}), situation
    if train.zero_stage not in ("auto", 3) and situation.world_size > 1:
        yield "zero", spec.with_values({"train.zero_stage": 3}), situation
    if train.engine != "auto":
        yield "engine", spec.with_values({"train.engine": "auto"}), situation


def _differences(
    spec: JobSpec, changed: JobSpec, before: Situation, place: Situation, candidate: Candidate
) -> Iterator[str]:
    """Every difference, in the words of a job file and of `zlaunch plan`."""
    for section in ("model", "data", "train"):
        old, new = getattr(spec, section), getattr(changed, section)
        for name in new.__struct_fields__:
            if getattr(old, name) != getattr(new, name):
                value = getattr(new, name)
                yield f"{section}.{name}: {'true' if value is True else value}"
    if place.world_size != before.world_size:
        shared = " (ZeRO-3 shares the weights)" if candidate.zero_stage == 3 else ""
        yield f"{place.world_size} GPUs like this one{shared}"
    elif place != before:
        yield f"a GPU of {place.gpu_memory_bytes / GIB:.0f} GiB ({place.gpu_name})"

"""The smallest changes that make a job fit its GPU, those that cost the user least first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from launcher.errors import BatchError, CompatibilityError
from launcher.job.spec import JobSpec
from launcher.plan.batch import divisors
from launcher.plan.candidates import Candidate
from launcher.plan.gpus import GPUS
from launcher.plan.situation import Situation
from train.memory import GIB, Memory

Values = dict[str, Any]
"""{key of the job: another value}"""
Idea = tuple[str, Values, Situation]
"""(kind of change, what changes in the job, where the job would run)"""
OPENED = ("train.micro_batch_size", "train.zero_stage", "train.gradient_checkpointing")
"""Settings that the user may have fixed without need."""
Rated = Callable[[JobSpec, Situation], Iterable[Candidate]]
"""The settings that a job can take there, each with its cost."""


@dataclass(frozen=True)
class Change:
    """A change that makes the job fit."""

    text: str
    """As the user would type it."""
    candidate: Candidate
    values: Values
    """What changes in the job, if that is enough; empty: other GPUs are needed."""


class DoesNotFit(CompatibilityError):
    """No setting within what the user fixed fits the GPU."""

    code = "ZL-PLAN-02"

    def __init__(self, message: str, changes: tuple[Change, ...], smallest: Memory) -> None:
        hint = "; or: ".join(change.text for change in changes[:3]) or "a smaller model or a larger GPU is needed"
        super().__init__(message, hint=hint)
        self.changes = changes
        self.smallest = smallest


def does_not_fit(spec: JobSpec, situation: Situation, tried: tuple[Candidate, ...], rated: Rated) -> DoesNotFit:
    """The error for a job of which nothing that was tried fits, with the changes that would help."""
    smallest = min((candidate.cost.memory for candidate in tried), key=lambda memory: memory.total)
    return DoesNotFit(
        f"{spec.model.path or 'the model'} does not fit: it needs at least {smallest.total / GIB:.1f} GiB per GPU, "
        f"and {situation.gpu_name} has {situation.room / GIB:.1f} GiB for it",
        tuple(_changes(spec, situation, tried[0].batch.global_batch_size, rated)),
        smallest,
    )


def _changes(spec: JobSpec, situation: Situation, records: int, rated: Rated) -> Iterator[Change]:
    """Of each kind of change, the smallest that is enough. `records`: per optimizer step of all ranks."""
    done: set[str] = set()
    for kind, values, place in _ideas(spec, situation, records):
        if kind in done:
            continue
        try:
            fits = [found for found in rated(spec.with_values(values), place) if place.holds(found.cost.memory)]
        except (BatchError, CompatibilityError):
            continue
        if not fits:
            continue
        done.add(kind)
        best = max(fits, key=lambda candidate: candidate.cost.tokens_per_second)
        texts = [f"{key}: {'true' if value is True else value}" for key, value in values.items()]
        if place.world_size != situation.world_size:
            shared = " (ZeRO-3 shares the weights)" if best.zero_stage == 3 else ""
            texts.append(f"{place.world_size} GPUs like this one{shared}")
        elif place != situation:
            texts.append(f"a GPU of {place.gpu_memory_bytes / GIB:.0f} GiB ({place.gpu_name})")
        yield Change(", ".join(texts), best, values if place == situation else {})


def _ideas(spec: JobSpec, situation: Situation, records: int) -> Iterator[Idea]:
    """What to try, the least costly for the user first; within one kind, the smallest change first."""
    opened: Values = {key: "auto" for key in OPENED if attrgetter(key)(spec) != "auto"}
    bases: list[Values] = [{}, opened] if opened else [{}]
    yield from ((kind, values, situation) for kind, values in _other_values(spec, situation, records))
    if opened:
        yield "auto", opened, situation
    nf4: Values = {"model.quantization": "nf4"} if spec.model.quantization == "none" else {}
    yield from (("quantization", nf4 | base, situation) for base in bases if nf4)
    for base in bases:
        length = spec.data.max_length // 2
        while length >= 256:
            yield "length", {"data.max_length": length} | base, situation
            length //= 2
    more = [replace(situation, world_size=size) for size in (2, 4, 8, 16, 32, 64) if size > situation.world_size]
    yield from (("gpus", base, place) for base in bases for place in more)
    yield from (("gpu", base, place) for base in bases for place in _larger_gpus(situation))
    yield from (("both", nf4 | opened, place) for place in more if nf4)


def _larger_gpus(situation: Situation) -> Iterator[Situation]:
    for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.memory_bytes):
        if gpu.memory_bytes > situation.gpu_memory_bytes * 1.05:
            yield Situation.of(situation.world_size, gpu.memory_bytes, gpu.title)


def _other_values(spec: JobSpec, situation: Situation, records: int) -> Iterator[tuple[str, Values]]:
    """Other values of the settings that the user fixed."""
    train = spec.train
    if train.gradient_checkpointing is False:
        yield "checkpointing", {"train.gradient_checkpointing": True}
    if train.micro_batch_size != "auto":
        for size in reversed(divisors(records // situation.world_size)):
            if size < train.micro_batch_size:
                yield "micro", {"train.micro_batch_size": size}
    if train.zero_stage not in ("auto", 3) and situation.world_size > 1:
        yield "zero", {"train.zero_stage": 3}
    if train.engine != "auto":
        yield "engine", {"train.engine": "auto"}

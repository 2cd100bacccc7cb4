"""Batch arithmetic: global_batch_size = micro_batch_size x gradient_accumulation_steps x world_size. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from launcher.errors import BatchError
from launcher.job.spec import TrainSpec


@dataclass(frozen=True)
class Batch:
    global_batch_size: int
    micro_batch_size: int
    """Records that a rank takes through one forward pass."""
    gradient_accumulation_steps: int
    world_size: int


USUAL_BATCH = 64
"""Records per optimizer step where the job says `auto`."""


def wanted_batch(given: int | str) -> int:
    """The number that a job's `train.global_batch_size` names: 8 for `8` and `about 8`, the usual one for `auto`."""
    return USUAL_BATCH if given == "auto" else int(str(given).removeprefix("about "))


def global_batch_of(train: TrainSpec, world_size: int, max_length: int) -> int:
    """Records per optimizer step: the job's number, or what the ranks can share that is nearest to it.

    With train.batch_tokens, the rows of `max_length` tokens that make up a step. The training program takes more
    records where they are shorter.
    """
    wanted = wanted_batch(train.global_batch_size)
    if train.batch_tokens:
        wanted = max(1, round(train.batch_tokens / max_length))
    if isinstance(train.global_batch_size, int):
        return wanted
    step = world_size * (1 if train.micro_batch_size == "auto" else train.micro_batch_size)
    below = wanted // step * step
    return below if below and wanted - below <= below + step - wanted else below + step


def batches_of(
    global_batch_size: int, micro_batch_size: int | Literal["auto"], world_size: int, largest: int
) -> tuple[Batch, ...]:
    """The batches that a run on `world_size` ranks can take, the smallest micro batch first.

    `auto` means every micro batch of at most `largest` records that divides a rank's share. Raises BatchError with the
    nearest sizes that work.
    """
    if global_batch_size % world_size:
        raise BatchError(
            f"global_batch_size {global_batch_size} cannot be shared by {world_size} ranks",
            hint=f"nearest sizes that can: {_nearest(global_batch_size, world_size)}",
        )
    share = global_batch_size // world_size
    if micro_batch_size == "auto":
        return tuple(
            Batch(global_batch_size, size, share // size, world_size)
            for size in divisors(share)
            if size <= max(1, largest)
        )
    if share % micro_batch_size:
        step = micro_batch_size * world_size
        raise BatchError(
            f"global_batch_size {global_batch_size} is not a multiple of micro_batch_size {micro_batch_size} "
            f"x {world_size} ranks = {step}",
            hint=f"nearest global sizes that can: {_nearest(global_batch_size, step)}; "
            f"or a micro_batch_size of {', '.join(map(str, divisors(share)[:12]))}",
        )
    return (Batch(global_batch_size, micro_batch_size, share // micro_batch_size, world_size),)


def divisors(number: int) -> list[int]:
    """In order; quick for the largest batches too."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return small + [number // size for size in reversed(small) if size * size != number]


def _nearest(size: int, step: int) -> str:
    below = size // step * step
    return " and ".join(str(value) for value in (below, below + step) if value > 0)

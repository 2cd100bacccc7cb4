"""Batch arithmetic: global_batch_size = micro_batch_size x gradient_accumulation_steps x world_size. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from launcher.errors import BatchError


@dataclass(frozen=True)
class Batch:
    global_batch_size: int
    micro_batch_size: int
    """Records a rank takes through one forward pass."""
    gradient_accumulation_steps: int
    world_size: int


def solve(global_batch_size: int, micro_batch_size: int | Literal["auto"], world_size: int, *, largest: int) -> Batch:
    """The batch of a run on `world_size` ranks; `auto` takes the largest micro batch of at most `largest` that divides.

    Raises BatchError naming the nearest sizes that can be had.
    """
    if global_batch_size % world_size:
        raise BatchError(
            f"global_batch_size {global_batch_size} cannot be shared by {world_size} ranks",
            hint=f"nearest sizes that can: {_nearest(global_batch_size, world_size)}",
        )
    share = global_batch_size // world_size
    if micro_batch_size == "auto":
        micro = max(size for size in divisors(share) if size <= max(1, largest))
    elif share % micro_batch_size:
        step = micro_batch_size * world_size
        raise BatchError(
            f"global_batch_size {global_batch_size} is not a multiple of micro_batch_size {micro_batch_size} "
            f"x {world_size} ranks = {step}",
            hint=f"nearest global sizes that can: {_nearest(global_batch_size, step)}; "
            f"or a micro_batch_size of {', '.join(map(str, divisors(share)[:12]))}",
        )
    else:
        micro = micro_batch_size
    return Batch(global_batch_size, micro, share // micro, world_size)


def divisors(number: int) -> list[int]:
    """In order; quick for the largest batches too."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return small + [number // size for size in reversed(small) if size * size != number]


def _nearest(size: int, step: int) -> str:
    below = size // step * step
    return " and ".join(str(value) for value in (below, below + step) if value > 0)

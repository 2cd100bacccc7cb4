"""Choose the records of each optimizer step, and deal them to the ranks. Pure: numpy in, numpy out.

The records of step k depend only on the seed and k, never on the number of ranks. Every step takes exactly
`global_batch_size` records from an endless chain of shuffled epochs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from train.config import Data, Training, quotas, remark_on_steps, steps_of

Indices = npt.NDArray[np.int64]
Order = Literal["none", "bucket", "pack"]
Ordered = Literal["shuffled", "given", "shortest_first"]


@dataclass(frozen=True)
class Sampler:
    """An endless chain of epochs over the records of weighted sources.

    Source s holds `counts[s]` consecutive records. An epoch sees each of them `weights[s]` times; a fraction means that
    share of them, drawn again for each epoch.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int
    used: tuple[int, ...] | None = None
    """How many of the records of each source take part, its first ones; None: all."""
    order: Ordered = "shuffled"
    lengths: npt.NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    """Tokens of each record, for `shortest_first`."""

    @staticmethod
    def of(
        data: Data,
        counts: Sequence[int],
        used: Sequence[int],
        seed: int,
        lengths: npt.NDArray[np.int64] | None = None,
    ) -> Sampler:
        """The sampler of a job: its weights are those that data.mix makes of the sources' own."""
        wanted = quotas(data, used)
        weights = [quota / count if count else 0.0 for quota, count in zip(wanted, used, strict=True)]
        return Sampler(tuple(counts), tuple(weights), seed, tuple(used), data.order, lengths)

    @property
    def quotas(self) -> list[int]:
        """Records of an epoch, by source."""
        return [self._quota(count, weight) for count, weight in zip(self._used, self.weights, strict=True)]

    @property
    def epoch_size(self) -> int:
        """Records of one epoch; the same for every epoch."""
        return sum(self.quotas)

    @property
    def _used(self) -> tuple[int, ...]:
        return self.counts if self.used is None else self.used

    def epoch(self, number: int) -> Indices:
        """The record indices of one epoch in order, shape [epoch_size]. Read-only: the array is cached."""
        return _epoch(self, number)

    def _shuffled(self, number: int) -> Indices:
        rng = np.random.default_rng([self.seed, number])
        parts: list[Indices] = []
        start = 0
        for count, used, weight in zip(self.counts, self._used, self.weights, strict=True):
            whole, rest = divmod(self._quota(used, weight), used) if used else (0, 0)
            parts += [np.arange(start, start + used, dtype=np.int64)] * whole
            drawn = rng.permutation(used)[:rest].astype(np.int64)
            parts.append(start + (np.sort(drawn) if self.order == "given" else drawn))
            start += count
        if not parts:
            return np.empty(0, np.int64)
        together = np.concatenate(parts)
        if self.order == "given":
            return together
        shuffled = rng.permutation(together)
        if self.order == "shuffled":
            return shuffled
        assert self.lengths is not None
        return shuffled[np.argsort(self.lengths[shuffled], kind="stable")]

    def step(self, number: int, global_batch_size: int) -> Indices:
        """The record indices of optimizer step `number` (from 0), shape [global_batch_size]."""
        size = self.epoch_size
        if not size:
            raise ValueError("no source has a record at its weight")
        first, last = number * global_batch_size, (number + 1) * global_batch_size
        pieces = []
        for epoch in range(first // size, (last - 1) // size + 1):
            begin = epoch * size
            pieces.append(self.epoch(epoch)[max(first - begin, 0) : last - begin])
        return np.concatenate(pieces)

    def steps(self, epochs: float, global_batch_size: int) -> int:
        """Optimizer steps that cover `epochs`, at least one."""
        return steps_of(epochs, self.epoch_size, global_batch_size)

    def remark(self, epochs: float, max_steps: int | None, global_batch_size: int) -> str | None:
        """What to know before a run of so few records or steps; None: nothing."""
        return remark_on_steps(self.epoch_size, epochs, max_steps, global_batch_size)

    @staticmethod
    def _quota(count: int, weight: float) -> int:
        return round(count * weight)


@functools.lru_cache(maxsize=2)
def _kept(sampler: Sampler, number: int, lengths: int) -> Indices:
    return sampler._shuffled(number)


def _epoch(sampler: Sampler, number: int) -> Indices:
    """Cache epochs: every step asks for its own, and shuffling a million records takes too long for that."""
    return _kept(sampler, number, id(sampler.lengths))


def deal(
    records: Indices, lengths: npt.ArrayLike, *, world_size: int, micro_batch_size: int, order: Order
) -> list[list[Indices]]:
    """Shares of one step: `deal(...)[rank][i]` is the i-th micro batch of a rank.

    `lengths` [len(records)] are in tokens. Every rank gets the same number of micro batches of exactly
    `micro_batch_size`, because of collectives inside the model (ZeRO-3). `bucket` sorts by length inside the step:
    similar lengths share a micro batch, the longest come first (memory runs out in the first step or never), and each
    goes to the rank with the fewest padded tokens so far, so that ranks finish together. Packed rows: packing.py.
    """
    if len(records) % (world_size * micro_batch_size):
        raise ValueError(f"{len(records)} records do not divide into {world_size} x {micro_batch_size}")
    sizes = np.asarray(lengths)
    ranked = records if order == "none" else records[np.argsort(-sizes, kind="stable")]
    micro_batches = ranked.reshape(-1, micro_batch_size)
    costs = (sizes[np.argsort(-sizes, kind="stable")] if order != "none" else sizes).reshape(-1, micro_batch_size)
    shares: list[list[Indices]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    quota = len(micro_batches) // world_size
    for batch, cost in zip(micro_batches, costs.max(axis=1), strict=True):
        rank = min((r for r in range(world_size) if len(shares[r]) < quota), key=lambda r: (loads[r], r))
        shares[rank].append(batch)
        loads[rank] += int(cost)
    return shares


def spread(count: int, world_size: int, batch_size: int) -> list[list[list[int]]]:
    """Deal positions 0..count-1 for evaluation: `spread(...)[rank]` is a list of batches, equally many on every rank.

    A batch may be smaller than `batch_size` or empty. Collectives need the same number of forward passes, so the caller
    fills an empty batch with a record that does not count.
    """
    batches = [list(range(i, min(i + batch_size, count))) for i in range(0, count, batch_size)]
    rounds = -(-len(batches) // world_size)
    batches += [[] for _ in range(rounds * world_size - len(batches))]
    return [batches[rank::world_size] for rank in range(world_size)]


def learning_rate(train: Training, step: int, total: int) -> float:
    """The rate of optimizer step `step` (from 0) of `total`: linear warm-up from zero, then as train.scheduler says.

    That of `get_scheduler` of transformers, whose `constant_with_warmup` is our `constant`, and `cosine_with_min_lr`
    our `cosine` with a floor.
    """
    warmup = warmup_steps(total, train.warmup_ratio, train.warmup_steps)
    shape, floor = train.scheduler, train.min_lr_ratio
    after = step - warmup
    if after < 0:
        share = step / warmup
        floor = floor if shape == "warmup_stable_decay" else 0.0
    elif shape == "constant":
        return train.learning_rate
    elif shape == "inverse_sqrt":
        share = math.sqrt((warmup or _TIMESCALE) / (after + (warmup or _TIMESCALE)))
    elif shape == "warmup_stable_decay":
        falling = math.ceil(total * train.decay_ratio) if train.decay_steps is None else train.decay_steps
        falling = min(falling, total - warmup)
        share = _half_cosine(max(0, step - (total - falling)) / max(1, falling))
    else:
        progress = after / max(1, total - warmup)
        if shape == "cosine_with_restarts":
            progress = train.scheduler_cycles * progress % 1.0
        power = train.scheduler_power if shape == "polynomial" else 1.0
        share = (1.0 - progress) ** power if shape in ("linear", "polynomial") else _half_cosine(progress)
    return train.learning_rate * (share * (1.0 - floor) + floor)


_TIMESCALE = 10_000
"""Steps that stand for the warm-up in `inverse_sqrt` without one, as in transformers."""


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_steps(total: int, ratio: float, steps: int | None = None) -> int:
    """As Trainer counts them; `steps` overrides the ratio.

    A run of one step has none: its only rate would be zero, and it would train nothing.
    """
    if total <= 1:
        return 0
    return math.ceil(total * ratio) if steps is None else steps


def padded_tokens(lengths: Sequence[int], multiple: int) -> int:
    """Tokens of a right-padded batch of these lengths, rounded up to `multiple`."""
    return -(-max(lengths) // multiple) * multiple * len(lengths)

"""The training loop: optimizer steps from a checkpoint's step to the last, with logs, checkpoints and requests.

Everything random in a step is a function of (seed, step, rank), the records of a step of (seed, step), and the loss is
averaged over the labelled tokens of the whole global batch; so a run is the same run however often it is cut and,
rounding aside, on however many ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from train import dist, rundir
from train.config import TrainConfig
from train.data import packing
from train.data.batches import COLLATORS
from train.data.dataset import Part
from train.data.schedule import Sampler, deal, learning_rate
from train.dist import World
from train.errors import UserError
from train.fused import inputs
from train.rundir import RunDir
from train.training.checkpoint import Progress
from train.training.evaluator import Interrupted
from train.training.metrics_log import Writer
from train.training.strategy import Strategy


@dataclass(frozen=True)
class _Work:
    """One optimizer step's records as this rank sees them."""

    tokens: int
    """Of the global batch, as is `labelled`."""
    labelled: int
    shares: list[np.ndarray]
    """Records of each of this rank's micro batches."""
    first: dict[str, Any] | None
    """The first micro batch, laid out and on its way to the device."""


@dataclass(frozen=True)
class Loop:
    config: TrainConfig
    world: World
    rundir: RunDir
    data: Part
    strategy: Strategy
    pad: int
    total: int
    """Optimizer steps of the whole run."""
    save: Callable[[Progress], None]
    evaluate: Callable[[], float] | None
    """Loss on data.eval, where there is one."""
    first_step_done: Callable[[], None]

    def run(self, progress: Progress) -> tuple[Progress, bool]:
        """Train from `progress` to the end or to a request to stop; (where it stands, was it stopped?)."""
        sampler = self.data.sampler(self.config.train.seed)
        writer = Writer(self.config, self.rundir, self.world, sampler.epoch_size, self.total)
        begin = last_saved = progress.step
        work = self.work(sampler, begin)
        for step in range(begin, self.total):
            started = time.perf_counter()
            wanted = self.rundir.requests()
            summed_loss = self.forward_backward(step, work)
            rate = self._rate(step)
            norm_seen = self.strategy.step(rate)
            count, tokens, work = work.labelled, work.tokens, self.work(sampler, step + 1)
            # only now is the GPU waited for: before, it would have been idle while the next step's records are laid out
            loss, *seen = dist.sum_over_ranks(self.world, [float(summed_loss), *map(float, wanted)])
            loss, norm, flags = loss / count, float(norm_seen), [value > 0 for value in seen]
            seconds = time.perf_counter() - started
            if not math.isfinite(loss):
                raise _diverged(f"the loss of step {step + 1} is {loss}")
            if not math.isfinite(norm) and not self.strategy.skips:  # the weights are no numbers either by now
                raise _diverged(f"the gradient of step {step + 1} is {norm}")
            if step == begin:
                self.first_step_done()
            progress = _advance(progress, loss, norm, tokens, seconds)
            writer.step(progress, loss, norm, rate, tokens / seconds)
            asked = [name for name, flag in zip(rundir.REQUESTS, flags, strict=True) if flag]
            every = self.config.train.checkpoint_every
            if asked or (every and progress.step % every == 0) or progress.step == self.total:
                self.save(progress)
                last_saved = progress.step
            if asked:
                self._acknowledge(asked)
            if "stop" in asked:
                return progress, True
            if self._evaluation_due(progress.step) and self.evaluate is not None:
                try:
                    writer.evaluation(progress.step, self.evaluate())
                except Interrupted:  # on every rank at the same batch
                    if last_saved != progress.step:
                        self.save(progress)
                    self._acknowledge(["stop"])
                    return progress, True
        if last_saved != progress.step:  # nothing was left to train
            self.save(progress)
        return progress, False

    def work(self, sampler: Sampler, step: int) -> _Work:
        """What `forward_backward` needs of a step; nothing for the step after the last."""
        if step >= self.total:
            return _Work(0, 0, [], None)
        records = sampler.step(step, self.config.train.global_batch_size)
        mine = self._share(records)
        return _Work(
            tokens=int(self.data.lengths[records].sum()),
            labelled=int(self.data.loss_tokens[records].sum()),
            shares=mine,
            first=self._batch(mine[0].tolist()) if mine else None,
        )

    def forward_backward(self, step: int, work: _Work) -> torch.Tensor:
        """This rank's sum of losses; the gradients are in the strategy."""
        torch.manual_seed(_seed(self.config.train.seed, step, self.world.rank))
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for place, indices in enumerate(work.shares):
            batch = work.first if place == 0 and work.first is not None else self._batch(indices.tolist())
            last = place == len(work.shares) - 1
            total += self.strategy.backward(batch, 1.0 / work.labelled, last=last).double()
        return total

    def _share(self, records: np.ndarray) -> list[np.ndarray]:
        """This rank's micro batches of a step; packed rows are filled by tokens, not by number of records."""
        train, lengths = self.config.train, self.data.lengths[records]
        world_size = self.world.world_size
        if train.packing == "pack":
            capacity = train.micro_batch_size * self.config.data.max_length
            return packing.deal(records, lengths, world_size=world_size, capacity=capacity)[self.world.rank]
        size = train.micro_batch_size
        shares = deal(records, lengths, world_size=world_size, micro_batch_size=size, order=train.packing)
        return shares[self.world.rank]

    def _batch(self, indices: list[int]) -> dict[str, Any]:
        if self.config.train.packing == "pack" and getattr(self.strategy.loss, "takes_layout", False):
            row = packing.collate(self.data.tokens, indices, pad=self.pad, pin=self.config.device == "cuda")
            return inputs.to_device(row, self.world.device)
        collator, multiple = COLLATORS[self.config.train.packing], 16 if self.config.device == "cuda" else 1
        return collator(self.data.tokens, indices, pad=self.pad, multiple=multiple, device=self.world.device)

    def _rate(self, step: int) -> float:
        train = self.config.train
        return learning_rate(
            step, self.total, peak=train.learning_rate, warmup_ratio=train.warmup_ratio, shape=train.scheduler
        )

    def _acknowledge(self, asked: list[str]) -> None:
        """Remove the requests that were met, once every rank has seen them."""
        if self.world.first:
            for name in asked:
                self.rundir.event("request", request=name, by=self.rundir.asked_by(name))
        dist.wait(self.world)
        for name in asked:
            self.rundir.withdraw(name)
        dist.wait(self.world)

    def _evaluation_due(self, step: int) -> bool:
        every = self.config.eval.every
        return bool(every) and step % every == 0 and step < self.total


def _diverged(what: str) -> UserError:
    """All that follows would be this too, and a checkpoint of it would take a good one's place."""
    return UserError(
        f"{what}: training has diverged",
        "set a lower train.learning_rate, and train.max_grad_norm: 1.0 if it is 0",
        "with model.dtype float16 try bfloat16 or float32, which do not overflow",
        "the checkpoints are of steps before: `zlaunch resume` with other settings goes on from the newest",
    )


def _seed(seed: int, step: int, rank: int) -> int:
    """One number from three, different for each triple in practice."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _advance(progress: Progress, loss: float, norm: float, tokens: int, seconds: float) -> Progress:
    known = [value for value in (progress.grad_norm_min, norm) if value is not None and math.isfinite(value)]
    return replace(
        progress,
        step=progress.step + 1,
        tokens=progress.tokens + tokens,
        loss_first=loss if progress.loss_first is None else progress.loss_first,
        loss_last=loss,
        grad_norm_min=min(known, default=None),
        seconds=progress.seconds + seconds,
    )

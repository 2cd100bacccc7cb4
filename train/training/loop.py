"""The training loop: optimizer steps from a checkpoint's step to the last, with logs, checkpoints and requests.

Randomness in a step is a function of (seed, step, rank), its records are a function of (seed, step), and the loss is
averaged over the labeled tokens of the whole global batch. So a run gives the same result however often it is
interrupted and, within rounding, on any number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from train import dist
from train.config import TrainConfig
from train.data import packing
from train.data.batches import COLLATORS, real_tokens
from train.data.dataset import Part
from train.data.schedule import Sampler, deal, learning_rate
from train.dist import World
from train.errors import UserError
from train.fused import inputs
from train.rundir.heartbeat import Heartbeat
from train.rundir.run_files import REQUESTS, RunDir
from train.training.checkpoint import Progress
from train.training.evaluator import Interrupted
from train.training.metrics_log import Done, MetricsLog
from train.training.router import RouterLoss
from train.training.strategy import Strategy


@dataclass(frozen=True)
class Work:
    """The records of one optimizer step, as this rank sees them."""

    tokens: int
    """Of the global batch, like `labelled`."""
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
    evaluate: Callable[[int | None], dict[str, float]] | None
    """What is measured on data.eval, if there is one: its `loss` on this many records (None: all), and scores."""
    first_step_done: Callable[[], None]
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    also_at: tuple[int, ...] = ()
    """Steps at which to evaluate beside the multiples of eval.every: before the first, after the last."""
    records: int | None = None
    """On how many records of data.eval to evaluate; None: all."""

    def waited_enough(self, progress: Progress) -> bool:
        """Whether the training stops early: too many measurements in a row were no better."""
        patience = self.config.train.early_stopping_patience
        return bool(patience and progress.best and progress.best.waited >= patience)

    def run(self, progress: Progress) -> tuple[Progress, bool]:
        """Train from `progress` to the end, or to a request to stop: (where it stands, whether it was stopped).

        The end comes before the last step where early_stopping_patience says so.
        """
        sampler = self.data.sampler(self.config.train.seed)
        log = MetricsLog(self.config, self.rundir, self.world, sampler.epoch_size, self.total)
        begin = last_saved = progress.step
        # A checkpoint is saved before its step is measured. A start that goes on from there measures it.
        if begin == 0 or (progress.measured is not None and progress.measured < begin):
            progress = self._evaluated(progress, log)
        work = self.work(sampler, begin)
        for step in range(begin, self.total):
            if self.waited_enough(progress):
                break
            self.heartbeat.step(step + 1)
            done, work = self._step(step, work, sampler)
            if step == begin:
                self.first_step_done()
            progress = _advance(progress, done)
            self.heartbeat.stepped(done.seconds)
            log.step(progress, done)
            if done.requests or self._save_due(progress.step):
                self.save(progress)
                last_saved = progress.step
            self._acknowledge(done.requests)
            if "stop" in done.requests:
                return progress, True
            try:
                progress = self._evaluated(progress, log)
            except Interrupted:  # on every rank at the same batch
                if last_saved != progress.step:
                    self.save(progress)
                self._acknowledge(["stop"])
                return progress, True
            wanted = self.waited_enough(progress) or (progress.best and progress.best.step == progress.step)
            if wanted and last_saved != progress.step:
                self.save(progress)
                last_saved = progress.step
        return progress, False

    def _step(self, step: int, work: Work, sampler: Sampler) -> tuple[Done, Work]:
        """Make an optimizer step; returns what came of it, and the work of the next one."""
        started = time.perf_counter()
        requested = self.rundir.requests()
        summed_loss = self.forward_backward(step, work)
        rate = self._rate(step)
        grad_norm = self.strategy.step(rate)
        following = self.work(sampler, step + 1)
        # Reading the loss waits for the GPU. It comes last, so the GPU is not idle while `following` is laid out.
        router = float(self.router.taken()) if self.router else 0.0
        numbers = [float(summed_loss), router, *map(float, requested)]
        loss, router, *flags = dist.sum_over_ranks(self.world, numbers)
        done = Done(
            loss=(loss - router * (self.router.weight if self.router else 0.0)) / work.labelled,
            grad_norm=float(grad_norm),
            rate=rate,
            tokens=work.tokens,
            seconds=time.perf_counter() - started,
            requests=[name for name, flag in zip(REQUESTS, flags, strict=True) if flag > 0],
            router_loss=router / work.labelled if self.router else None,
        )
        if not math.isfinite(done.loss):
            raise _diverged(f"the loss of step {step + 1} is {done.loss}")
        if not math.isfinite(done.grad_norm) and not self.strategy.skips:  # the step has ruined the weights too
            raise _diverged(f"the gradient of step {step + 1} is {done.grad_norm}")
        return done, following

    def work(self, sampler: Sampler, step: int) -> Work:
        """The input of `forward_backward` for a step; empty for the step after the last."""
        if step >= self.total:
            return Work(0, 0, [], None)
        records = sampler.step(step, self.config.train.global_batch_size)
        mine = self._share(records)
        return Work(
            tokens=int(self.data.lengths[records].sum()),
            labelled=int(self.data.loss_tokens[records].sum()),
            shares=mine,
            first=self._batch(mine[0].tolist()) if mine else None,
        )

    @property
    def router(self) -> RouterLoss | None:
        found: RouterLoss | None = getattr(self.strategy.loss, "router", None)
        return found

    def forward_backward(self, step: int, work: Work) -> torch.Tensor:
        """This rank's sum of losses; the strategy holds the gradients."""
        torch.manual_seed(_seed(self.config.train.seed, step, self.world.rank))
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for place, indices in enumerate(work.shares):
            batch = work.first if place == 0 and work.first is not None else self._batch(indices.tolist())
            last = place == len(work.shares) - 1
            total += self.strategy.backward(batch, 1.0 / work.labelled, last=last).double()
        return total

    def _share(self, records: np.ndarray) -> list[np.ndarray]:
        """This rank's micro batches of a step. Packed rows are filled by tokens, not by number of records."""
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
            batch: dict[str, Any] = inputs.to_device(row, self.world.device)
        else:
            collator, multiple = COLLATORS[self.config.train.packing], 16 if self.config.device == "cuda" else 1
            batch = collator(self.data.tokens, indices, pad=self.pad, multiple=multiple, device=self.world.device)
        if self.router:
            batch["real"] = real_tokens(batch, self.data.lengths[indices].tolist())
        return batch

    def _rate(self, step: int) -> float:
        return learning_rate(self.config.train, step, self.total)

    def _save_due(self, step: int) -> bool:
        every = self.config.train.checkpoint_every
        return step == self.total or (isinstance(every, int) and every > 0 and step % every == 0)

    def _evaluated(self, progress: Progress, log: MetricsLog) -> Progress:
        """Measure on data.eval, at the steps that the job asks for, and compare. Raises Interrupted."""
        every, step = self.config.eval.every, progress.step
        due = isinstance(every, int) and every > 0 and step % every == 0 and 0 < step < self.total
        if self.evaluate is None or not (due or step in self.also_at):
            return progress
        started = time.perf_counter()
        found = self.evaluate(self.records)
        log.evaluation(step, found, records=self.records, seconds=time.perf_counter() - started)
        best = progress.best
        if best is not None and step > 0:  # step 0 is the model without an adapter
            best = best.after(step, found[best.metric], self.config.train.early_stopping_min_delta)
            if self.world.first and best.step == step:
                self.rundir.event("best", step=step, metric=best.metric, value=best.value, records=best.records)
        return replace(progress, measured=step, best=best)

    def _acknowledge(self, requests: list[str]) -> None:
        """Remove the requests that were met, after every rank has seen them."""
        if not requests:
            return
        if self.world.first:
            for name in requests:
                self.rundir.event("request", request=name, by=self.rundir.asked_by(name))
        dist.wait(self.world)
        for name in requests:
            self.rundir.withdraw(name)
        dist.wait(self.world)


def _diverged(what: str) -> UserError:
    """An error that ends the run: a later checkpoint would be useless, and would displace a good one."""
    return UserError(
        f"{what}: training has diverged",
        "set a lower train.learning_rate, and train.max_grad_norm: 1.0 if it is 0",
        "with model.dtype float16, try bfloat16 or float32, which do not overflow",
        "the checkpoints are from earlier steps: `zlaunch resume` with other settings continues from the newest",
        code="ZL-TRAIN-01",
    )


def _seed(seed: int, step: int, rank: int) -> int:
    """One number from three; in practice it differs for each triple."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _advance(progress: Progress, done: Done) -> Progress:
    known = [norm for norm in (progress.grad_norm_min, done.grad_norm) if norm is not None and math.isfinite(norm)]
    return replace(
        progress,
        step=progress.step + 1,
        tokens=progress.tokens + done.tokens,
        loss_first=done.loss if progress.loss_first is None else progress.loss_first,
        loss_last=done.loss,
        grad_norm_min=min(known, default=None),
        seconds=progress.seconds + done.seconds,
    )

"""The log of a run's steps: metrics.jsonl and standard output; and peak memory."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from train.config import TrainConfig
from train.dist import World
from train.rundir import run_files
from train.rundir.run_files import RunDir
from train.training.checkpoint import Progress


@dataclass(frozen=True)
class Done:
    """What came of one optimizer step."""

    loss: float
    """Cross entropy per labeled token."""
    grad_norm: float
    rate: float
    tokens: int
    seconds: float
    requests: list[str]
    """Those of REQUESTS that any rank saw."""
    router_loss: float | None = None
    """Without its weight; None: none is added."""


class MetricsLog:
    """One line per step in metrics.jsonl and on standard output. Only rank 0 writes."""

    def __init__(self, config: TrainConfig, rundir: RunDir, world: World, epoch_size: int, total: int) -> None:
        self.config, self.rundir, self.world = config, rundir, world
        self.epoch_size, self.total = epoch_size, total

    def step(self, progress: Progress, done: Done) -> None:
        if not self.world.first or (progress.step % self.config.train.log_every and progress.step != self.total):
            return
        loss, norm, rate, tokens_per_second = done.loss, done.grad_norm, done.rate, done.tokens / done.seconds
        line = {
            "step": progress.step,
            "epoch": round(progress.step * self.config.train.global_batch_size / self.epoch_size, 4),
            "loss": loss,
            "grad_norm": norm if math.isfinite(norm) else None,
            "learning_rate": rate,
            "tokens": progress.tokens,
            "tokens_per_second": round(tokens_per_second, 1),
            "peak_memory_bytes": peak_memory(self.world),
            "time": round(time.time(), 3),
            **({} if done.router_loss is None else {"router_loss": done.router_loss}),
        }
        run_files.append_line(self.rundir.metrics, line)
        print(
            f"step {progress.step}/{self.total}  loss {loss:.4f}  grad_norm {norm:.3f}  lr {rate:.2e}  "
            f"{tokens_per_second:.0f} tokens/s",
            flush=True,
        )

    def evaluation(self, step: int, found: dict[str, float], *, records: int | None = None, seconds: float) -> None:
        """Log what was measured on data.eval: its loss, and scores of answers where they are compared.

        `records`: on how many records the loss, if not on all.
        """
        if self.world.first:
            known = {name: value if math.isfinite(value) else None for name, value in found.items()}
            line = {"step": step, "eval_loss": known.pop("loss"), "seconds": round(seconds, 3), **known}
            line["time"] = round(time.time(), 3)
            if records is not None:
                line["records"] = records
            run_files.append_line(self.rundir.metrics, line)
            scores = "".join(f"  {name} {value:.4f}" for name, value in found.items() if name != "loss")
            print(f"step {step}/{self.total}  eval_loss {found['loss']:.4f}{scores}", flush=True)


def gpu_memory(world: World) -> int | None:
    """Bytes of this rank's GPU; None on a CPU."""
    return None if world.device == "cpu" else int(torch.cuda.get_device_properties(world.device).total_memory)


def peak_memory(world: World) -> int:
    """The most bytes that this rank has held: on its GPU, or on a CPU in resident memory."""
    if world.device != "cpu":
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

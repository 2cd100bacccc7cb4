"""Cases on the real path of the program."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.gpu.cases import Case, data_of
from tests.bench.gpu.models import build, device_kind
from tests.bench.gpu.profile import profile
from tests.bench.gpu.tables import result
from train.memory import SHAPES, Shape


def train_config(case: Case) -> Any:
    from train.config import Data, Lora, Model, TrainConfig, Training

    records, length = case.records_a_step, case.dense[1] if case.dense else 512
    packed = case.engine == "fused"
    # the loop's capacity is micro_batch_size * max_length; for the padded engine, records per pass
    micro = records if case.dense else (max(1, case.capacity // length) if packed else 16)
    return TrainConfig(
        run_id="bench",
        device=device_kind(),
        model=Model(quantization=case.quantization, dtype="bfloat16"),
        data=Data(max_length=length),
        lora=Lora(),
        train=Training(
            global_batch_size=records,
            micro_batch_size=micro,
            gradient_accumulation_steps=max(1, records // micro),
            zero_stage=case.zero,
            engine=case.engine,
            packing="pack" if packed else "bucket",
            gradient_checkpointing=case.checkpointing,
        ),
    )


@dataclass
class Held:
    """The model of a shape, built once and shared by its cases."""

    key: tuple[Any, ...] = ()
    model: Any = None
    leaked: int = 0
    """Bytes allocated before the model was built; they do not belong to the case."""


def run_case(case: Case, held: Held, out: Path) -> dict[str, Any]:
    """Run one case on the real path of the program; return a line of results."""
    import gc

    import torch

    from train import dist
    from train.rundir.run_files import RunDir
    from train.training import strategy
    from train.training.checkpoint import Progress
    from train.training.loop import Loop

    key = (case.engine, case.shape, case.quantization, case.checkpointing and case.engine == "peft", case.zero)
    if held.key != key or case.quantization == "fp8":  # fp8 layers take the weights out of the model
        held.model = None
        gc.collect()
        torch.cuda.empty_cache()
        held.leaked = torch.cuda.memory_allocated()
        held.model, held.key = build(case), key
    shape, config, data = SHAPES[case.shape], train_config(case), data_of(case, SHAPES[case.shape].vocab)
    world = dist.from_environment(device_kind())
    trained = strategy.build(config, world, held.model, torch.bfloat16, _ds_config(case, config), case.engine)
    gc.collect()
    torch.cuda.empty_cache()
    marks: list[float] = []
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        rundir = RunDir(Path(place))
        loop = Loop(
            config=config, world=world, rundir=rundir, data=data, strategy=trained, pad=0,
            total=case.steps + case.warmup, save=lambda progress: None, evaluate=None,
            first_step_done=lambda: marks.append(time.perf_counter() - begun),
        )  # fmt: skip
        if device_kind() == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with _quiet():
            loop.run(Progress(step=0))
        lines = [json.loads(line) for line in rundir.metrics.read_text().splitlines()]
    peak = max(1, torch.cuda.max_memory_allocated() - held.leaked)
    if case.profile:
        what = f"{case.workload.replace(':', '-')}-{case.quantization}-zero{case.zero}"
        profile(loop, out / f"profile-{what}-{world.rank}.txt")
    del trained, loop
    return _line(case, shape, lines, peak, marks[0])


class _quiet:
    """Hide the lines that the loop prints per step."""

    def __enter__(self) -> None:
        self.kept = sys.stdout
        sys.stdout = Path(os.devnull).open("w")

    def __exit__(self, *_: Any) -> None:
        sys.stdout.close()
        sys.stdout = self.kept


def _ds_config(case: Case, config: Any) -> dict[str, Any] | None:
    if not case.zero:
        return None
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29533")
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(key, value)
    train = config.train
    return {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": case.zero, "overlap_comm": True, "contiguous_gradients": True},
        "steps_per_print": 10**9,
    }


def _line(case: Case, shape: Shape, lines: list[dict[str, Any]], peak: int, first: float) -> dict[str, Any]:
    timed = lines[case.warmup :]
    if not all(line["grad_norm"] and math.isfinite(line["loss"]) for line in lines):
        raise RuntimeError(f"{case.name}: a step without gradients or with a loss that is not finite")
    # tokens per second of each step; the median counts
    rates = sorted(line["tokens_per_second"] for line in timed)
    tokens = (lines[-1]["tokens"] - lines[case.warmup - 1]["tokens"]) / len(timed)
    rate = rates[len(rates) // 2]
    return result(case, shape, rate, tokens / rate, peak, first, [line["loss"] for line in lines])

"""What a setting costs: memory on one GPU and tokens per second of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from launcher.job.spec import JobSpec
from launcher.plan.batch import Batch
from launcher.plan.between_hosts import Traffic, traffic_of
from launcher.plan.situation import Situation
from train import memory
from train.memory import EngineName, Memory, MemoryCase, OwnRanks, Shape

ZERO_SPEED = {0: 1.0, 1: 0.95, 2: 0.95, 3: 0.8}
"""Speed relative to plain data parallelism, on one and two H100s (docs/performance.md); stage 1 as stage 2."""
FUSED_ZERO_3_SPEED = 0.92
"""Where the fused layers share the frozen weights themselves."""


@dataclass(frozen=True)
class Cost:
    memory: Memory
    """Bytes on one GPU at the peak of a step."""
    tokens_per_second: float
    """Of all ranks together."""
    step_seconds: float = 0.0
    traffic: Traffic = field(default_factory=Traffic)
    """Between hosts."""
    waits_seconds: float = 0.0
    """Of a step, for the network between hosts."""


NOT_KNOWN = Cost(Memory(0, 0, 0, 0, 0, 0, 0), 0.0)


def cost_of(
    spec: JobSpec,
    shape: Shape,
    situation: Situation,
    batch: Batch,
    engine: str,
    checkpointing: bool,
    zero_stage: int,
    zero_group: str,
) -> Cost:
    """The cost of a step whose records all have the greatest length."""
    targets = _targets(spec, shape)
    case = MemoryCase(
        tokens=batch.micro_batch_size * spec.data.max_length,
        sequence=spec.data.max_length,
        engine=cast(EngineName, engine),
        quantization=spec.model.quantization,
        weight_bytes=4 if spec.model.dtype == "float32" else 2,
        lora_r=spec.lora.r,
        lora_own=OwnRanks(tuple(spec.lora.rank_pattern.items()), spec.lora.layers_to_transform),
        lora_targets=targets,
        whole=spec.lora.modules_to_save,
        checkpointing=checkpointing,
        zero_stage=zero_stage,
        world_size=situation.world_size,
        weight_ranks=situation.ranks_per_host if zero_group == "host" else None,
        offload=spec.train.offload == "cpu",
        optimizer=spec.train.optimizer,
        offload_weights=spec.train.offload_param != "none",
        bucket=spec.train.reduce_bucket_size,
    )
    speed = memory.tokens_per_second(shape, case, situation.matrix_rate) * relative_speed(engine, zero_stage)
    passes = batch.gradient_accumulation_steps
    work = passes * case.tokens / speed
    traffic = traffic_of(shape, case, situation.hosts, passes)
    waits = traffic.waits(work, situation.network)
    tokens_per_second = passes * case.tokens / (work + waits) * situation.world_size
    return Cost(memory.predict(shape, case), tokens_per_second, work + waits, traffic, waits)


def relative_speed(engine: str, zero_stage: int) -> float:
    """Speed of a stage on one host, relative to plain data parallelism."""
    return FUSED_ZERO_3_SPEED if memory.shares_itself(engine, zero_stage) else ZERO_SPEED[zero_stage]


def _targets(spec: JobSpec, shape: Shape) -> tuple[str, ...] | None:
    """Names of the adapted layers; None: all. Experts have LoRA only as PEFT has it for parameters."""
    targets, lora = spec.lora.target_modules, spec.lora
    if isinstance(targets, tuple) and "auto" not in targets:
        return targets
    plain = not (lora.dropout or lora.dora or lora.init != "default")
    return None if shape.experts is None or plain else memory.ATTENTION

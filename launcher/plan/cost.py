"""What a setting costs: memory on one GPU and tokens per second of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from launcher.job.spec import JobSpec
from launcher.plan.batch import Batch
from launcher.plan.situation import Situation
from train import memory
from train.memory import EngineName, Memory, MemoryCase, Shape

ZERO_SPEED = {0: 1.0, 1: 0.95, 2: 0.95, 3: 0.8}
"""Speed relative to plain data parallelism, on one and two H100s (docs/performance.md); stage 1 as stage 2."""
FUSED_ZERO_3_SPEED = 0.92
"""Where the fused layers share the frozen weights themselves."""
NETWORK = 25e9 / 8
"""Bytes per second between hosts that a plan reckons with: 25 Gb/s Ethernet."""


@dataclass(frozen=True)
class Cost:
    memory: Memory
    """Bytes on one GPU at the peak of a step."""
    tokens_per_second: float
    """Of all ranks together."""


NOT_KNOWN = Cost(Memory(0, 0, 0, 0, 0, 0, 0), 0.0)


def cost_of(
    spec: JobSpec,
    shape: Shape,
    situation: Situation,
    batch: Batch,
    engine: str,
    checkpointing: bool,
    zero_stage: int,
) -> Cost:
    """The cost of a step whose records all have the greatest length."""
    targets = spec.lora.target_modules
    case = MemoryCase(
        tokens=batch.micro_batch_size * spec.data.max_length,
        sequence=spec.data.max_length,
        engine=cast(EngineName, engine),
        quantization=spec.model.quantization,
        weight_bytes=4 if spec.model.dtype == "float32" else 2,
        lora_r=spec.lora.r,
        lora_targets=targets if isinstance(targets, tuple) else None,
        whole=spec.lora.modules_to_save,
        checkpointing=checkpointing,
        zero_stage=zero_stage,
        world_size=situation.world_size,
        offload=spec.train.offload == "cpu",
        offload_weights=spec.train.offload_param != "none",
        bucket=spec.train.reduce_bucket_size,
    )
    own_zero_3 = memory.shares_itself(engine, zero_stage)
    speed = memory.tokens_per_second(shape, case, situation.matrix_rate)
    speed *= FUSED_ZERO_3_SPEED if own_zero_3 else ZERO_SPEED[zero_stage]
    passes = batch.gradient_accumulation_steps
    seconds = passes * case.tokens / speed + _network_seconds(shape, case, situation.hosts, passes)
    return Cost(memory.predict(shape, case), passes * case.tokens / seconds * situation.world_size)


def _network_seconds(shape: Shape, case: MemoryCase, hosts: int, passes: int) -> float:
    """How long a step waits for the network between hosts.

    Every step sums the gradients of the adapter. Under ZeRO-3 every pass gathers the weights of the layers twice, and
    what the other hosts have of them crosses the network: the fused layers hide little of it behind their work.
    """
    if hosts == 1:
        return 0.0
    others = (hosts - 1) / hosts
    sent = 2 * others * 4 * memory.lora_parameters(shape, case.lora_r, case.lora_targets)
    if case.zero_stage == 3:
        sent += passes * 2 * others * shape.layers * shape.layer_weights * case.weight_bytes
    return sent / NETWORK

"""Where a job would run and what model it trains: the two facts that `auto` depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from launcher.errors import CompatibilityError
from launcher.job.spec import JobSpec
from launcher.plan import gpus
from launcher.plan.between_hosts import USUAL_RATE
from launcher.plan.types import Target
from train import families, memory
from train.config import Device
from train.families import Family
from train.memory import GIB, Memory, Shape

MARGIN = 0.05
"""Share of a GPU's memory to keep free, for fragments of the allocator and for predictions that are a little low."""
CONTEXT_BYTES = round(0.9 * GIB)
"""CUDA's context and the workspaces of libraries, which the allocator does not count."""
NCCL_BYTES = round(0.7 * GIB)
"""NCCL's buffers, where there are several ranks."""
USUAL_MATRIX_RATE = 100e12
"""FLOP/s of a GPU that the table does not know."""


@dataclass(frozen=True)
class Situation:
    """The GPUs, or the CPU, that a job would run on."""

    world_size: int
    gpu_memory_bytes: int
    """Of the smallest GPU; 0: not known, or no GPU."""
    gpu_name: str = "GPU"
    matrix_rate: float = USUAL_MATRIX_RATE
    """FLOP/s of a large bfloat16 matrix product."""
    compute_capability: float | None = None
    """Of the oldest GPU; below 8.0 it trains in float16. None: not known, and taken for newer."""
    device: Device = "cuda"
    hosts: int = 1
    network: float = USUAL_RATE
    """Bytes per second of a link between two hosts."""
    ranks_per_host: int = 1
    """Of the host with the fewest."""

    @staticmethod
    def of(world_size: int, memory_bytes: int, name: str | None, capability: float | None = None) -> Situation:
        """On GPUs of this name, as nvidia-smi or the table has it."""
        gpu = gpus.identify(name, memory_bytes)
        return Situation(
            world_size,
            memory_bytes,
            name or "GPU",
            gpu.matrix_rate if gpu else USUAL_MATRIX_RATE,
            capability or (gpu.compute_capability if gpu else None),
        )

    @staticmethod
    def at(target: Target) -> Situation:
        if target.device == "cpu":
            return Situation(target.world_size, 0, device="cpu")
        found = Situation.of(
            target.world_size, target.gpu_memory_bytes or 0, target.gpu_name, target.compute_capability
        )
        each = min(ranks for _, ranks in target.hosts)
        return replace(found, hosts=len(target.hosts), ranks_per_host=each, network=target.network or USUAL_RATE)

    @property
    def room(self) -> int:
        """Bytes of a GPU that the tensors of a job may take."""
        outside = CONTEXT_BYTES + (NCCL_BYTES if self.world_size > 1 else 0)
        return max(0, round(self.gpu_memory_bytes * (1 - MARGIN)) - outside)

    def holds(self, need: Memory) -> bool:
        return need.total <= self.room

    @property
    def capability(self) -> tuple[int, int] | None:
        """The compute capability in two parts: 8.6 -> (8, 6)."""
        if self.compute_capability is None:
            return None
        major, _, minor = f"{self.compute_capability:.1f}".partition(".")
        return int(major), int(minor)


@dataclass(frozen=True)
class Model:
    """What is known of a model before it is loaded."""

    family: Family
    shape: Shape | None
    """None: neither config.json nor the name says it."""
    unknown: str = ""
    """What config.json lacks for a shape."""
    positions: int | None = None
    """The most tokens of a record; None: not known, or no limit."""


def scaled(spec: JobSpec, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """config.json with model.rope_scaling of the job. Raises CompatibilityError."""
    wanted = spec.model
    try:
        return config and families.with_rope(config, wanted.rope_scaling, wanted.rope_factor, spec.data.max_length)
    except ValueError as error:
        hint = "set model.rope_scaling: none"
        raise CompatibilityError(f"model.rope_scaling: {error}", hint=hint) from None


def model_of(path: str, config: Mapping[str, Any] | None) -> Model:
    """The model by its config.json, else by its name.

    A name that says nothing gets the family that takes everything; the training program checks again once it has the
    model.
    """
    unknown = ""
    try:
        shape = memory.named(path) if config is None else memory.from_config(config)
    except memory.UnknownShape as error:
        shape, unknown = None, str(error)
    if config is not None:
        return Model(families.family_of(config), shape, unknown, families.max_positions(config))
    return Model(families.of_type(shape.family) if shape else families.FAMILIES[0], shape)

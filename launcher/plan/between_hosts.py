"""What a step sends between hosts, and how long it waits for that. Pure.

Every step sums the gradients of the adapter over the ranks, under each ZeRO stage. Under ZeRO-3 every pass also gathers
the weights of the layers twice: for the forward, and for the backward, with or without recomputing. In fp8 they are one
byte each. Where the ranks of each host share the weights among themselves, none cross the network. The numbers are
those of one link between two hosts: a ring of all ranks crosses it once for each direction.

How much of the gathering hides behind the work was measured on two hosts with one H200 each (docs/nodes.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from train import memory
from train.memory import MemoryCase, Shape

USUAL_RATE = 25e9 / 8
"""Bytes per second between hosts where nobody says it: 25 Gb/s Ethernet."""
NOT_HIDDEN = 0.25
"""Share of the shorter of work and gathering that the longer one does not hide: of 1B and 8B shapes, 0.29 and 0.2."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that cross a link between two hosts in one step."""

    gradients: float = 0.0
    weights: float = 0.0

    @property
    def total(self) -> float:
        return self.gradients + self.weights

    def waits(self, work: float, rate: float) -> float:
        """Seconds that a step of `work` seconds waits for the network."""
        gathering = self.weights / rate
        return max(work, gathering) + NOT_HIDDEN * min(work, gathering) - work + self.gradients / rate


def traffic_of(shape: Shape, case: MemoryCase, hosts: int, passes: int) -> Traffic:
    """Of a step of `passes` passes per rank."""
    if hosts == 1:
        return Traffic()
    others = (case.world_size - 1) / case.world_size
    crosses = case.zero_stage == 3 and case.weight_ranks is None
    each = 1 if case.quantization == "fp8" else case.weight_bytes
    gathered = shape.layers * shape.layer_weights * each if crosses else 0
    return Traffic(
        2 * others * 4 * memory.lora_parameters(shape, case.lora_r, case.lora_targets, case.lora_own),
        passes * 2 * others * gathered,
    )


def rate_text(rate: float) -> str:
    """Bits per second as network cards are named, and the bytes that this is."""
    return f"{rate * 8 / 1e9:.3g} Gb/s"

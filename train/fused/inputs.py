"""Move batches to the device in the form that the fused layers take."""

from __future__ import annotations

from typing import Any


def to_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    """Return the arguments of `FusedModel.forward` on the device. Copies from pinned memory do not wait for the GPU."""
    from train.fused.attention import PackedLayout

    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items() if name != "lengths"}
    return {**moved, "layout": PackedLayout.from_lengths(batch["lengths"], device)}

"""Batches on the device, as the fused layers take them."""

from __future__ import annotations

from typing import Any


def to_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    """What train.fused.FusedModel takes, on its device; copies from pinned memory do not wait for the GPU."""
    from train.fused.attention import Layout

    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items() if name != "lengths"}
    return {**moved, "layout": Layout.of(batch["lengths"], device)}

"""ZeRO-3 for the fused layers: the ranks shard the frozen weights of the decoder layers.

Each rank keeps an equal shard of every layer. While a layer runs, its full weights are in one of two buffers. The next
layer is gathered into the other buffer meanwhile, on a separate CUDA stream. DeepSpeed does this per parameter through
hooks, whose Python time is close to a layer's compute time (measured on two H100s: 77% of the speed of one GPU). With
one collective per layer, only the first layer of a run waits. The weights never change, so a pass reuses what the
previous one left in the buffers.

Across hosts, the ranks of each host can share all weights among themselves (`on_my_host`): every host then has a copy,
and the gathers stay on NVLink or PCIe. DeepSpeed calls the like hpZ, torch hybrid sharding.

Embeddings, head, norms and the adapter are complete on every rank: 2 GiB of an 8B model, whose layers have 13 GiB.

    shards = Shards(everyone(world), ([qkv, o, gate_up, down] for each layer))   whole weights, one layer at a time
    (qkv, _), (o, _), (gate_up, _), (down, _) = shards.gather(3, ahead=4)        buffers of layer 3, valid until
    shards.release(3)

fp8 products need the transposed weights in the backward pass. Their second copy is made on the stream that gathers, so
that ranks share one byte per weight instead of two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.dist import Sharers

SLOTS = 2
"""Layers that are gathered at a time; train/memory.py counts them."""

Buffers = tuple[Tensor, Tensor | None]
"""A weight [N, K] and, if it was asked for, its transpose [K, N]."""


@dataclass
class _Slot:
    """A buffer for the weights of one layer."""

    flat: Tensor
    weights: list[Tensor]
    """Views of `flat`."""
    transposed: list[Tensor] = field(default_factory=list)
    layer_index: int | None = None
    is_transposed: bool = False
    """Whether `transposed` holds the weights of this layer."""
    gathered_event: Any = None
    """CUDA event: the weights are gathered."""
    released_event: Any = None
    """CUDA event: the kernels that read them are done."""


class Shards:
    def __init__(self, sharers: Sharers, layers: Iterable[Sequence[Tensor]], *, transposes: bool = False) -> None:
        """Keep this rank's shard of each layer's matrices. All layers have the same shapes and one dtype.

        `transposes`: whether `gather` will be asked for transposed weights.
        """
        self.sharers = sharers
        self.shards: list[Tensor] = []
        self.shapes: list[tuple[int, int]] = []
        for weights in layers:
            self.shapes = [(weight.shape[0], weight.shape[1]) for weight in weights]
            self.shards.append(self._shard(weights))
        device = self.shards[0].device
        self.gather_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.slots = [self._new_slot(transposes) for _ in range(SLOTS)]
        if self.gather_stream is not None:
            for slot in self.slots:  # gather nothing before the shards are complete
                slot.released_event = torch.cuda.current_stream().record_event()

    def _shard(self, weights: Sequence[Tensor]) -> Tensor:
        """Return this rank's shard of a layer: an equal slice of all its weights, flattened and padded."""
        flat = torch.cat([weight.flatten() for weight in weights])
        size = -(-flat.numel() // self.sharers.count)
        mine = flat[size * self.sharers.index : size * (self.sharers.index + 1)]
        return torch.cat([mine, mine.new_zeros(size - mine.numel())])

    def _new_slot(self, transposes: bool) -> _Slot:
        shard = self.shards[0]
        flat = shard.new_empty(shard.numel() * self.sharers.count)
        sizes = [rows * columns for rows, columns in self.shapes]
        used = flat[: sum(sizes)]
        slot = _Slot(flat, [w.view(shape) for w, shape in zip(used.split(sizes), self.shapes, strict=True)])
        if transposes:
            slot.transposed = [shard.new_empty(columns, rows) for rows, columns in self.shapes]
        return slot

    def gather(self, index: int, *, ahead: int | None, transposed: bool = False) -> list[Buffers]:
        """Return the weights of layer `index`.

        Starts to gather layer `ahead`. A collective: every rank must gather the same layers in the same order.
        """
        slot = self._ensure_slot(index, None, transposed)
        if ahead is not None and 0 <= ahead < len(self.shards):
            self._ensure_slot(ahead, slot, transposed)
        if self.gather_stream is not None:
            torch.cuda.current_stream().wait_event(slot.gathered_event)
        return list(zip(slot.weights, slot.transposed if transposed else [None] * len(slot.weights), strict=True))

    def release(self, index: int) -> None:
        """Allow the buffer of layer `index` to be reused after the kernels launched so far."""
        slot = next(slot for slot in self.slots if slot.layer_index == index)
        if self.gather_stream is not None:
            slot.released_event = torch.cuda.current_stream().record_event()

    def _ensure_slot(self, index: int, busy: _Slot | None, transposed: bool) -> _Slot:
        slot = next((slot for slot in self.slots if slot.layer_index == index), None)
        if slot is not None and (slot.is_transposed or not transposed):
            return slot
        slot = slot or next(slot for slot in self.slots if slot is not busy)
        if self.gather_stream is None:
            self._fill(slot, index, transposed)
            return slot
        with torch.cuda.stream(self.gather_stream):
            if slot.released_event is not None:
                self.gather_stream.wait_event(slot.released_event)
            self._fill(slot, index, transposed)
            slot.gathered_event = self.gather_stream.record_event()
        return slot

    def _fill(self, slot: _Slot, index: int, transposed: bool) -> None:
        """Gather a layer into a slot, unless it is there, and transpose it if asked for."""
        if slot.layer_index != index:
            slot.layer_index, slot.is_transposed = index, False
            # as bytes: gloo does not support every dtype
            whole, shard = slot.flat.view(torch.uint8), self.shards[index].view(torch.uint8)
            dist.all_gather_into_tensor(whole, shard, group=self.sharers.group)
        if transposed:
            for weight, out in zip(slot.weights, slot.transposed, strict=True):
                out.copy_(weight.t())
            slot.is_transposed = True


def free(parameter: Any) -> None:
    """Free a parameter's memory, including DeepSpeed's shard of it."""
    if hasattr(parameter, "ds_tensor"):
        parameter.ds_tensor.data = parameter.ds_tensor.new_empty(0)
    parameter.data = parameter.data.new_empty(0)


@contextlib.contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gather parameters that DeepSpeed's zero.Init has sharded. Others are complete already."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


def unshard(parameters: Iterable[nn.Parameter]) -> None:
    """Make parameters that zero.Init has sharded complete on every rank from now on."""
    for parameter in parameters:
        if hasattr(parameter, "ds_id"):
            with gathered([parameter]):
                data = parameter.data.clone()
            free(parameter)
            parameter.data = data

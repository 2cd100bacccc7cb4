"""ZeRO-3 for the fused layers: the ranks shard the frozen weights of the decoder layers.

Each rank keeps an equal shard of every layer. While a layer runs, its full weights are in one of two buffers. The next
layer is gathered into the other buffer meanwhile, on a separate CUDA stream. DeepSpeed does this per parameter through
hooks, whose Python time is close to a layer's compute time (measured on two H100s: 77% of the speed of one GPU). With
one collective per layer, only the first layer of a run waits. The weights never change, so a pass reuses what the
previous one left in the buffers.

Across hosts, the ranks of each host can share all weights among themselves (`on_my_host`): every host then has a copy,
and the gathers stay on NVLink or PCIe. DeepSpeed calls the like hpZ, torch hybrid sharding.

Embeddings, head, norms and the adapter are complete on every rank: 2 GiB of an 8B model, whose layers have 13 GiB.

    shards = Shards(everyone(world), [[[q, k, v], [o], [gate, up], [down]], ...], [48, 16, 32, 16])
                                                     weights to concatenate by rows; LoRA's width for each group
    qkv, o, gate_up, down = shards.gather(3, ahead=4)   buffers of layer 3 (train/fused/linears.py), valid until
    shards.release(3)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.dist import Sharers

SLOTS = 2
"""Layers that are gathered at a time; train/memory.py counts them."""

Layer = Sequence[Sequence[nn.Parameter]]


@dataclass
class _Slot:
    """A buffer for the weights of one layer."""

    flat: Tensor
    weights: list[Tensor]
    """Views of `flat`."""
    layer_index: int | None = None
    gathered_event: Any = None
    """CUDA event: the weights are gathered."""
    released_event: Any = None
    """CUDA event: the kernels that read them are done."""


class Shards:
    def __init__(self, sharers: Sharers, layers: Sequence[Layer], lora_widths: Sequence[int]) -> None:
        """Move the content of the parameters to the shards. They stay empty until their layer is gathered.

        `lora_widths`: additional rows and columns of each concatenated weight of a layer. They are gathered too (1% of
        the bytes), so that a gathered weight has the same layout as an unsharded one.
        """
        self.sharers = sharers
        self.lora_widths = list(lora_widths)
        self.layers = [list(layer) for layer in layers]
        self.shards: list[Tensor] = []
        self.rows: list[list[int]] = []
        """Rows of each parameter; all layers have the same."""
        shapes: list[tuple[int, int]] = []
        for layer in self.layers:
            with gathered(parameter for parameters in layer for parameter in parameters):
                self.rows = [[len(parameter) for parameter in parameters] for parameters in layer]
                shapes = [
                    self._shape(parameters, lora_width)
                    for parameters, lora_width in zip(layer, self.lora_widths, strict=True)
                ]
                self.shards.append(self._shard(layer))
            for parameters in layer:
                for parameter in parameters:
                    free(parameter)
        device = self.shards[0].device
        self.gather_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.slots = [self._new_slot(shapes) for _ in range(SLOTS)]
        if self.gather_stream is not None:
            for slot in self.slots:  # gather nothing before the shards are complete
                slot.released_event = torch.cuda.current_stream().record_event()

    @staticmethod
    def _shape(parameters: Sequence[nn.Parameter], lora_width: int) -> tuple[int, int]:
        return sum(map(len, parameters)) + lora_width, parameters[0].shape[1] + lora_width

    def _shard(self, layer: Layer) -> Tensor:
        """Return this rank's shard of a layer: an equal slice of all its weights, flattened and padded."""
        flat = torch.cat([self._padded(*each).flatten() for each in zip(layer, self.lora_widths, strict=True)])
        size = -(-flat.numel() // self.sharers.count)
        mine = flat[size * self.sharers.index : size * (self.sharers.index + 1)]
        return torch.cat([mine, mine.new_zeros(size - mine.numel())])

    def _padded(self, parameters: Sequence[nn.Parameter], lora_width: int) -> Tensor:
        weight = torch.cat([parameter.data for parameter in parameters])
        return nn.functional.pad(weight, (0, lora_width, 0, lora_width))

    def _new_slot(self, shapes: Sequence[tuple[int, int]]) -> _Slot:
        shard = self.shards[0]
        flat = shard.new_empty(shard.numel() * self.sharers.count)
        sizes = [rows * columns for rows, columns in shapes]
        used = flat[: sum(sizes)]
        return _Slot(flat, [w.view(shape) for w, shape in zip(used.split(sizes), shapes, strict=True)])

    def gather(self, index: int, *, ahead: int | None) -> list[Tensor]:
        """Return the concatenated weights of layer `index`, and make its parameters views of them.

        Starts to gather layer `ahead`. A collective: every rank must gather the same layers in the same order.
        """
        slot = self._ensure_slot(index, None)
        if ahead is not None and 0 <= ahead < len(self.shards):
            self._ensure_slot(ahead, slot)
        if self.gather_stream is not None:
            torch.cuda.current_stream().wait_event(slot.gathered_event)
        groups = zip(self.layers[index], slot.weights, self.rows, self.lora_widths, strict=True)
        for parameters, weight, rows, lora_width in groups:
            columns = weight.shape[1] - lora_width
            for parameter, part in zip(parameters, weight[: sum(rows), :columns].split(rows), strict=True):
                parameter.data = part
        return slot.weights

    def release(self, index: int) -> None:
        """Allow the buffer of layer `index` to be reused after the kernels launched so far."""
        slot = next(slot for slot in self.slots if slot.layer_index == index)
        if self.gather_stream is not None:
            slot.released_event = torch.cuda.current_stream().record_event()
        for parameters in self.layers[index]:
            for parameter in parameters:
                parameter.data = slot.flat.new_empty(0)

    def _ensure_slot(self, index: int, busy: _Slot | None) -> _Slot:
        for slot in self.slots:
            if slot.layer_index == index:
                return slot
        slot = next(slot for slot in self.slots if slot is not busy)
        slot.layer_index = index
        if self.gather_stream is None:
            self._all_gather(slot, index)
            return slot
        with torch.cuda.stream(self.gather_stream):
            if slot.released_event is not None:
                self.gather_stream.wait_event(slot.released_event)
            self._all_gather(slot, index)
            slot.gathered_event = self.gather_stream.record_event()
        return slot

    def _all_gather(self, slot: _Slot, index: int) -> None:
        # as bytes: gloo does not support every dtype
        whole, shard = slot.flat.view(torch.uint8), self.shards[index].view(torch.uint8)
        dist.all_gather_into_tensor(whole, shard, group=self.sharers.group)


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

"""ZeRO-3 for the fused layers: the frozen weights of the decoder layers are shared by the ranks.

Each rank keeps an equal part of every layer. A layer's weights are whole in one of two buffers while it is at work; the
next layer's are gathered into the other meanwhile, on a stream of their own. DeepSpeed does the same parameter by
parameter through hooks, whose Python time is near a layer's arithmetic (measured on two H100s: 77% of the speed of one
GPU); with one message a layer the time left to wait is that of the first layer of a run. The weights never change, so
what the buffers hold at the end of one pass serves the next.

Embeddings, head, norms and the adapter are whole on every rank: of an 8B model 2 GiB, beside its layers' 13.

    shards = Shards(world, [[[q, k, v], [o], [gate, up], [down]], ...], [48, 16, 32, 16])
                                                   lists of parameters, joined row by row; LoRA's room beside each
    qkv, o, up, down = shards.take(3, ahead=4)     buffers of layer 3 (train/fused/linears.py), valid until
    shards.done(3)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as group
from torch import Tensor, nn

from train.dist import World

SLOTS = 2
"""Layers that are whole at a time; train/memory.py counts them."""

Layer = Sequence[Sequence[nn.Parameter]]


@dataclass
class _Slot:
    """A buffer for the weights of one layer."""

    flat: Tensor
    weights: list[Tensor]
    """Views of `flat`."""
    holds: int | None = None
    ready: Any = None
    """Event: the weights are here."""
    free: Any = None
    """Event: the work that reads them is done."""


class Shards:
    def __init__(self, world: World, layers: Sequence[Layer], rooms: Sequence[int]) -> None:
        """Takes the parameters' content: they are empty afterwards, until their layer is taken.

        `rooms`: further rows and columns of each joined weight of a layer. They are gathered with it (one in a hundred
        bytes), so that a gathered weight has the same form as one that is always whole.
        """
        self.world = world
        self.rooms = list(rooms)
        self.layers = [list(layer) for layer in layers]
        self.parts: list[Tensor] = []
        self.rows: list[list[int]] = []
        """Of each parameter of a layer, the same in all of them."""
        shapes: list[tuple[int, int]] = []
        for layer in self.layers:
            with whole(parameter for joined in layer for parameter in joined):
                self.rows = [[len(parameter) for parameter in joined] for joined in layer]
                shapes = [self._shape(joined, room) for joined, room in zip(layer, self.rooms, strict=True)]
                self.parts.append(self._part(layer))
            for joined in layer:
                for parameter in joined:
                    empty(parameter)
        device = self.parts[0].device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.slots = [self._slot(shapes) for _ in range(SLOTS)]
        if self.side is not None:
            for slot in self.slots:  # nothing is gathered before the parts are there
                slot.free = torch.cuda.current_stream().record_event()

    @staticmethod
    def _shape(joined: Sequence[nn.Parameter], room: int) -> tuple[int, int]:
        return sum(map(len, joined)) + room, joined[0].shape[1] + room

    def _part(self, layer: Layer) -> Tensor:
        """This rank's part of a layer: of all its weights in one row, padded so that the parts are equal."""
        flat = torch.cat([self._with_room(*each).flatten() for each in zip(layer, self.rooms, strict=True)])
        size = -(-flat.numel() // self.world.world_size)
        mine = flat[size * self.world.rank : size * (self.world.rank + 1)]
        return torch.cat([mine, mine.new_zeros(size - mine.numel())])

    def _with_room(self, joined: Sequence[nn.Parameter], room: int) -> Tensor:
        weight = torch.cat([parameter.data for parameter in joined])
        return nn.functional.pad(weight, (0, room, 0, room))

    def _slot(self, shapes: Sequence[tuple[int, int]]) -> _Slot:
        part = self.parts[0]
        flat = part.new_empty(part.numel() * self.world.world_size)
        sizes = [rows * columns for rows, columns in shapes]
        used = flat[: sum(sizes)]
        return _Slot(flat, [w.view(shape) for w, shape in zip(used.split(sizes), shapes, strict=True)])

    def take(self, index: int, *, ahead: int | None) -> list[Tensor]:
        """Layer `index` whole: its joined weights with their room, of which its parameters are views now. The gathering
        of layer `ahead` begins. A collective: every rank takes the same layers in the same order."""
        slot = self._fetch(index, None)
        if ahead is not None and 0 <= ahead < len(self.parts):
            self._fetch(ahead, slot)
        if self.side is not None:
            torch.cuda.current_stream().wait_event(slot.ready)
        for joined, weight, rows, room in zip(self.layers[index], slot.weights, self.rows, self.rooms, strict=True):
            columns = weight.shape[1] - room
            for parameter, part in zip(joined, weight[: sum(rows), :columns].split(rows), strict=True):
                parameter.data = part
        return slot.weights

    def done(self, index: int) -> None:
        """What reads layer `index` has been launched; its buffer may be filled anew behind that."""
        slot = next(slot for slot in self.slots if slot.holds == index)
        if self.side is not None:
            slot.free = torch.cuda.current_stream().record_event()
        for joined in self.layers[index]:
            for parameter in joined:
                parameter.data = slot.flat.new_empty(0)

    def _fetch(self, index: int, busy: _Slot | None) -> _Slot:
        for slot in self.slots:
            if slot.holds == index:
                return slot
        slot = next(slot for slot in self.slots if slot is not busy)
        slot.holds = index
        if self.side is None:
            self._gather(slot, index)
            return slot
        with torch.cuda.stream(self.side):
            if slot.free is not None:
                self.side.wait_event(slot.free)
            self._gather(slot, index)
            slot.ready = self.side.record_event()
        return slot

    def _gather(self, slot: _Slot, index: int) -> None:
        # as bytes: gloo does not know every dtype
        group.all_gather_into_tensor(slot.flat.view(torch.uint8), self.parts[index].view(torch.uint8))


def empty(parameter: Any) -> None:
    """Drop a parameter's content, DeepSpeed's part of it too."""
    if hasattr(parameter, "ds_tensor"):
        parameter.ds_tensor.data = parameter.ds_tensor.new_empty(0)
    parameter.data = parameter.data.new_empty(0)


@contextlib.contextmanager
def whole(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Parameters that were loaded under DeepSpeed's zero.Init are whole inside; others always are."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


def keep_whole(parameters: Iterable[nn.Parameter]) -> None:
    """Let parameters that zero.Init has sharded be whole on every rank from now on."""
    for parameter in parameters:
        if hasattr(parameter, "ds_id"):
            with whole([parameter]):
                kept = parameter.data.clone()
            empty(parameter)
            parameter.data = kept

"""Causal attention inside records that lie end to end in one row: no padding, no mask, no leak from one to the next.

    run(query, key, value, layout, into) -> output, backward
    backward(gradient, room)       -> gradients of query, key and value, where the kernel can: in `room`

On a GPU short records go to kernels of ours (attention_triton.py); long ones to the variable-length flash kernel,
which takes the records' borders as they are, or where all are of one length (a dense batch) to torch's dense attention,
whose cuDNN kernels are faster on Hopper. Elsewhere each record is a call of its own.
Both directions are plain functions, so that train/fused/model.py can place them inside its own backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Backward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(gradient of the output [tokens, heads, dim], room [tokens, heads + 2 * key heads, dim]) -> gradients of query, key
and value; they may lie in the room, in this order, or elsewhere."""


@dataclass(frozen=True)
class Layout:
    """How records lie in a row of tokens."""

    borders: Tensor
    """int32 [records + 1] on the row's device: where each record begins, and the end of the last."""
    lengths: tuple[int, ...]
    """Tokens of each record, known on the host: no kernel launch waits for the GPU."""
    _tiles: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def dense(self) -> bool:
        return len(set(self.lengths)) == 1

    def tiles(self, group: int) -> tuple[Tensor, Tensor]:
        """The work list of our kernels for `group` query heads a key head; made once, all layers share it."""
        if group not in self._tiles:
            from train.fused.attention_triton import tiles

            found = tiles(self.lengths, group)
            sent = torch.from_numpy(np.concatenate(found)).to(self.borders.device, non_blocking=True)
            queries, keys = sent.split([len(part) for part in found])
            self._tiles[group] = queries, keys
        return self._tiles[group]

    @staticmethod
    def of(lengths: tuple[int, ...], device: torch.device | str) -> Layout:
        borders = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return Layout(borders.to(device, non_blocking=True), lengths)


DENSE_FROM = 1024
"""Records of one length at least this long go to dense attention."""

SHORT = 1024
"""Rows whose records are at most this long go to our kernels; twice as long, flash is as fast (docs/performance.md)."""


def run(query: Tensor, key: Tensor, value: Tensor, layout: Layout, into: Tensor) -> tuple[Tensor, Backward]:
    """query [tokens, heads, dim], key and value [tokens, key heads, dim] -> output [tokens, heads, dim], backward.

    `into` [tokens, heads, dim], rows with a stride of their own, receives the output. What is returned is the copy that
    the backward pass reads: `into` itself, or the kernel's own.
    """
    if query.is_cuda and _is_short(query, key, layout):
        return _short(query, key, value, layout, into)
    output, backward = _kernel(query, layout)(query, key, value, layout)
    into.copy_(output)
    return output, backward


def _is_short(query: Tensor, key: Tensor, layout: Layout) -> bool:
    if (layout.dense and layout.longest >= DENSE_FROM) or query.dtype == torch.float32:
        return False
    return layout.longest <= SHORT and query.shape[-1] in (64, 128) and query.shape[1] <= 8 * key.shape[1]


def _kernel(query: Tensor, layout: Layout) -> Callable[[Tensor, Tensor, Tensor, Layout], tuple[Tensor, Backward]]:
    """Of those that choose the place of their output."""
    if not query.is_cuda:
        return _segments
    if (layout.dense and layout.longest >= DENSE_FROM) or query.dtype == torch.float32:
        return _dense if layout.dense else _segments
    return _flash


def _short(query: Tensor, key: Tensor, value: Tensor, layout: Layout, output: Tensor) -> tuple[Tensor, Backward]:
    from train.fused import attention_triton

    tiles = layout.tiles(query.shape[1] // key.shape[1])
    logsumexp = attention_triton.forward(query, key, value, output, tiles)

    def backward(grad: Tensor, room: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = room.split([query.shape[1], key.shape[1], key.shape[1]], dim=1)
        attention_triton.backward(grad, query, key, value, output, logsumexp, tiles, (dq, dk, dv))
        return dq, dk, dv

    return output, backward


def _flash(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> tuple[Tensor, Backward]:
    """The kernel behind torch.nn.attention.varlen, called without its custom-op wrapper: grouped queries work from
    torch 2.11 on, and its Python cost stays off a layer's critical path."""
    borders, longest = layout.borders, layout.longest
    output, logsumexp, seed, offset, _ = torch.ops.aten._flash_attention_forward(
        query, key, value, borders, borders, longest, longest, 0.0, True, False
    )

    def backward(grad: Tensor, room: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            grad, query, key, value, output, logsumexp, borders, borders, longest, longest, 0.0, True, seed, offset
        )
        return result

    return output, backward


def _dense(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> tuple[Tensor, Backward]:
    """Records of one length as a batch, through torch's own choice of kernel."""
    rows, length = len(layout.lengths), layout.longest
    with torch.enable_grad():
        inputs = tuple(x.detach().requires_grad_() for x in (query, key, value))
        q, k, v = (x.unflatten(0, (rows, length)).transpose(1, 2) for x in inputs)
        grouped = k.shape[1] != q.shape[1]
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        output = attended.transpose(1, 2).flatten(0, 1)

    def backward(grad: Tensor, room: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = torch.autograd.grad(output, inputs, grad)
        return dq, dk, dv

    return output.detach(), backward


def _segments(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> tuple[Tensor, Backward]:
    """Each record by itself: for a CPU, and for tests of the other two."""
    with torch.enable_grad():
        inputs = tuple(x.detach().requires_grad_() for x in (query, key, value))
        parts = []
        for q, k, v in zip(*(x.split(layout.lengths) for x in inputs), strict=True):
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            grouped = k.shape[1] != q.shape[1]
            one = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            parts.append(one[0].transpose(0, 1))
        output = torch.cat(parts)

    def backward(grad: Tensor, room: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = torch.autograd.grad(output, inputs, grad)
        return dq, dk, dv

    return output.detach(), backward

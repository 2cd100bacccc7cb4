"""Causal attention within packed records, without padding or masks; no record attends to another.

    forward(query, key, value, layout, out) -> output, backward
    backward(gradient, workspace)           -> gradients of query, key and value, in `workspace` where the kernel can

On a GPU, short records go to our kernels (attention_triton.py). Long ones go to the variable-length flash kernel, which
takes cumulative sequence lengths. Records of equal length (a dense batch) go to torch's dense attention, whose cuDNN
kernels are faster on Hopper. On other devices each record is a separate call.
Both directions are plain functions, so that train/fused/model.py can call them inside its own backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Backward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(gradient of the output [tokens, heads, dim], workspace [tokens, heads + 2 * key heads, dim]) -> gradients of query,
key and value. They may be views of the workspace, in this order, or separate tensors."""


@dataclass(frozen=True)
class PackedLayout:
    """How records are packed in a row of tokens."""

    cu_seqlens: Tensor
    """int32 [records + 1] on the row's device: the cumulative sequence lengths, starting with 0."""
    lengths: tuple[int, ...]
    """Tokens per record. They are on the host, so no kernel launch waits for the GPU."""
    _tiles: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def dense(self) -> bool:
        return len(set(self.lengths)) == 1

    def tiles(self, group: int) -> tuple[Tensor, Tensor]:
        """The tiles of our kernels for `group` query heads per key head. Made once; all layers share them."""
        if group not in self._tiles:
            from train.fused.attention_triton import tiles

            arrays = tiles(self.lengths, group)
            on_device = torch.from_numpy(np.concatenate(arrays)).to(self.cu_seqlens.device, non_blocking=True)
            queries, keys = on_device.split([len(part) for part in arrays])
            self._tiles[group] = queries, keys
        return self._tiles[group]

    @staticmethod
    def from_lengths(lengths: tuple[int, ...], device: torch.device | str) -> PackedLayout:
        cu_seqlens = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return PackedLayout(cu_seqlens.to(device, non_blocking=True), lengths)


DENSE_FROM = 1024
"""Records of equal length that have at least this many tokens go to dense attention."""

SHORT_UP_TO = 1024
"""Rows whose records are at most this long go to our kernels. At twice the length flash is as fast
(docs/performance.md)."""

MOST_QUERIES = 16
"""Query heads per key head that our kernels take; GLM has 16."""


@dataclass(frozen=True)
class Form:
    """How a layer attends, where that differs between models and layers."""

    scale: float | None = None
    """Factor of the scores; None: 1 / sqrt(dim)."""
    window: int | None = None
    """A token sees itself and the window - 1 tokens before it; None: all before it."""

    def within(self, longest: int) -> Form:
        """The same for records of at most `longest` tokens, which a window may not reach."""
        return self if self.window is None or self.window < longest else Form(self.scale)

    def scale_of(self, query: Tensor) -> float:
        return float(query.shape[-1] ** -0.5) if self.scale is None else self.scale


def forward(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, out: Tensor, form: Form | None = None
) -> tuple[Tensor, Backward]:
    """query [tokens, heads, dim], key and value [tokens, key heads, dim] -> output [tokens, heads, dim], backward.

    The output is written to `out` [tokens, heads, dim], whose rows may be strided. The returned output is the tensor
    that the backward pass reads: `out` itself, or the kernel's own.
    """
    form = (form or Form()).within(layout.longest)
    if query.is_cuda and form.window is None and _are_short(query, key, layout):
        return _forward_short(query, key, value, layout, out, form)
    output, backward = _choose_kernel(query, layout, form)(query, key, value, layout, form)
    out.copy_(output)
    return output, backward


def _are_short(query: Tensor, key: Tensor, layout: PackedLayout) -> bool:
    if (layout.dense and layout.longest >= DENSE_FROM) or query.dtype == torch.float32:
        return False
    return (
        layout.longest <= SHORT_UP_TO and query.shape[-1] in (64, 128) and query.shape[1] <= MOST_QUERIES * key.shape[1]
    )


def _choose_kernel(
    query: Tensor, layout: PackedLayout, form: Form
) -> Callable[[Tensor, Tensor, Tensor, PackedLayout, Form], tuple[Tensor, Backward]]:
    """Choose among the kernels that allocate their own output."""
    if not query.is_cuda:
        return _forward_each
    if form.window is not None:
        return _forward_each if query.dtype == torch.float32 else _forward_flash
    if (layout.dense and layout.longest >= DENSE_FROM) or query.dtype == torch.float32:
        return _forward_dense if layout.dense else _forward_each
    return _forward_flash


def _forward_short(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, output: Tensor, form: Form
) -> tuple[Tensor, Backward]:
    from train.fused import attention_triton

    tiles = layout.tiles(query.shape[1] // key.shape[1])
    scale = form.scale_of(query)
    logsumexp = attention_triton.forward(query, key, value, output, tiles, scale)

    def backward(grad: Tensor, workspace: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = workspace.split([query.shape[1], key.shape[1], key.shape[1]], dim=1)
        attention_triton.backward(grad, query, key, value, output, logsumexp, tiles, (dq, dk, dv), scale)
        return dq, dk, dv

    return output, backward


def _forward_flash(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, form: Form
) -> tuple[Tensor, Backward]:
    """Call the kernel behind torch.nn.attention.varlen without its custom-op wrapper.

    The wrapper takes grouped queries only since torch 2.11, and its Python time would be on a layer's critical path.
    """
    cu_seqlens, longest = layout.cu_seqlens, layout.longest
    options: dict[str, float | int] = {"scale": form.scale_of(query)}
    if form.window is not None:
        options |= {"window_size_left": form.window - 1, "window_size_right": 0}
    output, logsumexp, seed, offset, _ = torch.ops.aten._flash_attention_forward(
        query, key, value, cu_seqlens, cu_seqlens, longest, longest, 0.0, True, False, **options
    )

    def backward(grad: Tensor, workspace: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            grad,
            query,
            key,
            value,
            output,
            logsumexp,
            cu_seqlens,
            cu_seqlens,
            longest,
            longest,
            0.0,
            True,
            seed,
            offset,
            **options,
        )
        return result

    return output, backward


def _forward_dense(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, form: Form
) -> tuple[Tensor, Backward]:
    """Run records of equal length as a batch, with the kernel that torch chooses."""
    rows, length = len(layout.lengths), layout.longest
    with torch.enable_grad():
        inputs = tuple(x.detach().requires_grad_() for x in (query, key, value))
        q, k, v = (x.unflatten(0, (rows, length)).transpose(1, 2) for x in inputs)
        grouped = k.shape[1] != q.shape[1]
        attended = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=grouped, scale=form.scale
        )
        output = attended.transpose(1, 2).flatten(0, 1)

    def backward(grad: Tensor, workspace: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = torch.autograd.grad(output, inputs, grad)
        return dq, dk, dv

    return output.detach(), backward


def _forward_each(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, form: Form
) -> tuple[Tensor, Backward]:
    """Run each record separately: for CPUs, and as the reference in tests of the other kernels."""
    with torch.enable_grad():
        inputs = tuple(x.detach().requires_grad_() for x in (query, key, value))
        parts = []
        for q, k, v in zip(*(x.split(layout.lengths) for x in inputs), strict=True):
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            grouped, mask = k.shape[1] != q.shape[1], _window_mask(q.shape[2], form.window, q.device)
            attended = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped, scale=form.scale
            )
            parts.append(attended[0].transpose(0, 1))
        output = torch.cat(parts)

    def backward(grad: Tensor, workspace: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = torch.autograd.grad(output, inputs, grad)
        return dq, dk, dv

    return output.detach(), backward


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """[length, length]: which keys a query sees within its window; None: all before it."""
    if window is None or window >= length:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)

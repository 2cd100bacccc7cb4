"""Frozen linear maps with LoRA beside them, both directions by hand (train/fused/model.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ALIGNED = 8
"""Elements: rows that begin elsewhere take slower kernels."""


class Linear:
    """One or several linear maps of the same input as one matrix product, with their LoRA branches.

    Weights [N, K] (N: all outputs), inner width e: the sum of the ranks. The weights lie in one buffer with LoRA beside
    them: A as e further rows, the scaled B's (a block diagonal) as e further columns,

        W   B        forward:  [x | x A'] [W | B]'          backward:  [g | g B] [W]
        A   .                                                                    [A]

    so that one product does both: a further pass over the widest tensors would cost ten times the arithmetic. Where the
    weights must be contiguous (not `wide`) the columns are left out, and where the sum of the ranks is no multiple of
    ALIGNED the rows too: LoRA's part is then a product of its own. Where weights cannot be moved (quantised), each map
    is a product of its own as well; where the ranks share them (`sharded`), `weight` is there while a layer is at work.
    """

    def __init__(self, modules: Sequence[nn.Module], *, wide: bool, sharded: bool) -> None:
        self.bases = [getattr(module, "base_layer", module) for module in modules]
        self.adapters = [_adapter(module) for module in modules]
        self.quantised = any(hasattr(base.weight, "quant_state") for base in self.bases)
        self.rows = [base.out_features for base in self.bases]
        self.inputs: int = self.bases[0].in_features
        self.outputs = sum(self.rows)
        self.inner = sum(adapter.rank for adapter in self.adapters if adapter)
        self.joined = not self.quantised and not sharded
        self.beside = self.joined and self.inner % ALIGNED == 0
        self.wide = wide and self.beside
        device, dtype = self._place()
        if not self.quantised:
            self.bias = self._joined_bias()
        self.a = torch.zeros(self.inner, self.inputs, device=device, dtype=dtype)
        self.b = torch.zeros(self.outputs, self.inner, device=device, dtype=dtype)
        if not self.joined:
            return
        rows, columns = self.outputs + self.beside * self.inner, self.inputs + self.wide * self.inner
        whole = torch.zeros(rows, columns, device=device, dtype=dtype)
        self.weight, self.backwards = whole[: self.outputs], whole[:, : self.inputs]
        if self.beside:
            self.a = whole[self.outputs :, : self.inputs]
        if self.wide:
            self.b = self.weight[:, self.inputs :]
        for base, part in zip(self.bases, self.weight.split(self.rows), strict=True):
            part[:, : self.inputs].copy_(base.weight.data)
            base.weight.data = part[:, : self.inputs]  # the model's parameter is now a view of the buffer

    def _place(self) -> tuple[torch.device, torch.dtype]:
        base = self.bases[0]
        if self.quantised:
            return base.weight.device, base.weight.quant_state.dtype
        return base.weight.device, base.weight.dtype

    def _joined_bias(self) -> Tensor | None:
        if all(base.bias is None for base in self.bases):
            return None
        device, dtype = self._place()
        parts = [torch.zeros(n, device=device, dtype=dtype) if b.bias is None else b.bias.data
                 for b, n in zip(self.bases, self.rows, strict=True)]  # fmt: skip
        return torch.cat(parts)

    @property
    def parameters(self) -> list[Tensor]:
        return [part for adapter in self.adapters if adapter for part in (adapter.a, adapter.b)]

    def copies(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """(place, trained parameter, scale) of each A and B: what `refresh` brings up to date before a pass."""
        column = 0
        for adapter, block in zip(self.adapters, self.b.split(self.rows), strict=True):
            if adapter:
                rank = adapter.rank
                yield self.a[column : column + rank], adapter.a, 1.0
                yield block[:, column : column + rank], adapter.b, adapter.scale
                column += rank

    def _parts(self, whole: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """(columns of `whole` [tokens, N], weights [n, K], bias [n]) of each product; one dequantised weight a time."""
        if not self.quantised:
            yield whole, self.weight[:, : self.inputs], self.bias
            return
        from bitsandbytes.functional import dequantize_4bit

        for base, part in zip(self.bases, whole.split(self.rows, dim=1), strict=True):
            weight = dequantize_4bit(base.weight.data, base.weight.quant_state).view(-1, self.inputs)
            yield part, weight, base.bias

    def room(self, tokens: int) -> Tensor:
        """An uninitialised input [tokens, K (+ e)]; the caller fills the first K columns."""
        return torch.empty(
            tokens, self.inputs + (self.inner if self.wide else 0), device=self.a.device, dtype=self.a.dtype
        )

    def gradient_room(self, tokens: int) -> Tensor:
        """Uninitialised outputs [tokens, N] that `backward` takes as a gradient without copying them."""
        return _roomy(tokens, self.outputs, self.beside * self.inner, self.a)

    def forward(self, x: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [tokens, K + e] from `room` -> (outputs [tokens, N] (+ plus), inner activations [tokens, e] to keep)."""
        inner = x[:, : self.inputs] @ self.a.t()
        if self.wide:
            x[:, self.inputs :] = inner
            product = _plus_product(out, x, self.weight.t(), self.bias if plus is None else plus)
            if plus is not None and self.bias is not None:
                product.add_(self.bias)
            return product, inner
        product = x.new_empty(len(x), self.outputs) if out is None else out
        for part, weight, bias in self._parts(product):
            _plus_product(part, x, weight.t(), bias if plus is None else plus)
            if plus is not None and bias is not None:
                part.add_(bias)
        if self.inner:
            product.addmm_(inner, self.b.t())
        return product, inner

    def backward(self, grad: Tensor, *, inputs: bool = True) -> tuple[Tensor | None, Tensor]:
        """grad [tokens, N] -> (gradient of the input [tokens, K] or None, inner gradient [tokens, e])."""
        if self.beside and self.inner:
            room = _columns_behind(grad, self.inner)
            inner = room[:, self.outputs :]
            torch.mm(grad, self.b, out=inner)
            return (room @ self.backwards if inputs else None), inner
        inner = grad @ self.b
        if not inputs:
            return None, inner
        dx: Tensor | None = None
        for part, weight, _ in self._parts(grad):
            dx = part @ weight if dx is None else dx.addmm_(part, weight)
        if dx is not None and self.inner:
            dx.addmm_(inner, self.a)
        return dx, inner

    def gradients(self, x: Tensor, kept: Tensor, grad: Tensor, inner: Tensor) -> list[Tensor]:
        """Gradients of `parameters`: x [tokens, K] the input, kept and inner [tokens, e], grad [tokens, N]."""
        if not self.inner:
            return []
        da, db = inner.t() @ x, grad.t() @ kept
        found: list[Tensor] = []
        column = 0
        for adapter, block in zip(self.adapters, db.split(self.rows), strict=True):
            if adapter:
                rank = adapter.rank
                part = slice(column, column + rank)
                found.append(da[part].to(adapter.a.dtype))
                found.append((block[:, part].to(adapter.b.dtype)) * adapter.scale)
                column += rank
        return found


@dataclass(frozen=True)
class _Adapter:
    a: Tensor
    """[rank, inputs]"""
    b: Tensor
    """[outputs, rank]"""
    scale: float
    rank: int


def _roomy(rows: int, width: int, further: int, like: Tensor) -> Tensor:
    """Uninitialised [rows, width], with room for `further` columns behind each row."""
    return torch.empty(rows, width + further, device=like.device, dtype=like.dtype)[:, :width]


def _columns_behind(x: Tensor, further: int) -> Tensor:
    """x [rows, width] with `further` columns behind it: its own memory if it comes from `_roomy`, else a copy."""
    rows, width = x.shape
    stride = width + further
    if x.stride() == (stride, 1) and x.untyped_storage().nbytes() == rows * stride * x.element_size():
        return x.as_strided((rows, stride), (stride, 1), 0)
    room = x.new_empty(rows, stride)
    room[:, :width] = x
    return room


def _plus_product(out: Tensor | None, x: Tensor, weight: Tensor, added: Tensor | None) -> Tensor:
    """x weight (+ added), in `out` where it is given."""
    if added is None:
        return torch.mm(x, weight) if out is None else torch.mm(x, weight, out=out)
    return torch.addmm(added, x, weight) if out is None else torch.addmm(added, x, weight, out=out)


def _adapter(module: Any) -> _Adapter | None:
    if not hasattr(module, "lora_A") or not module.lora_A:
        return None
    (name,) = module.active_adapters
    a, b = module.lora_A[name], module.lora_B[name]
    return _Adapter(a.weight, b.weight, float(module.scaling[name]), a.out_features)

"""Frozen linear maps with LoRA beside them, both directions by hand (train/fused/model.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ALIGNED = 8
"""Elements: rows that begin elsewhere take slower kernels."""


class Linear:
    """One or several linear maps of the same input as one matrix product, with their LoRA branches.

    The weights are [N, K] (N: all outputs). The inner width e is the sum of the ranks, rounded up to ALIGNED. A buffer
    [N + e, K + e] holds the weights with LoRA beside them: A as e further rows, the scaled B's (a block diagonal) as e
    further columns,

        W   B        forward:  [x | x A'] [W | B]'          backward:  [g | g B] [W]
        A   .                                                                    [A]

    One product does both, and its result is rounded once. A second pass would cost ten times its arithmetic. It would
    also lose LoRA's part: the updates of the first steps are smaller than half of the last bit of a bfloat16 output,
    and vanish in an output that is rounded already (tests/train/fused/test_linears.py).

    The buffer is one of three:
      - its own, allocated here once; the model's parameters become views of it;
      - lent by `lend` while one layer is at work, where the ranks share the weights (train/fused/sharded.py);
      - made for each product from quantised weights, which stay as they are.
    """

    def __init__(self, modules: Sequence[nn.Module], *, sharded: bool = False) -> None:
        self.bases = [getattr(module, "base_layer", module) for module in modules]
        self.adapters = [_adapter(module) for module in modules]
        self.quantised = any(hasattr(base.weight, "quant_state") for base in self.bases)
        self.rows = [base.out_features for base in self.bases]
        self.inputs: int = self.bases[0].in_features
        self.outputs = sum(self.rows)
        self.inner = -(-sum(adapter.rank for adapter in self.adapters if adapter) // ALIGNED) * ALIGNED
        self.bias = self._joined_bias()
        self.whole: Tensor | None = None
        """The buffer [N + e, K + e], while it is here."""
        self.a = self._zeros(self.inner, self.inputs)
        self.b = self._zeros(self.outputs, self.inner)
        if self.quantised or sharded:
            return
        self.whole = self._zeros(self.outputs + self.inner, self.inputs + self.inner)
        self.a, self.b = self.whole[self.outputs :, : self.inputs], self.whole[: self.outputs, self.inputs :]
        for base, part in zip(self.bases, self._rows_of(self.whole), strict=True):
            part.copy_(base.weight.data)
            base.weight.data = part  # the model's parameter is now a view of the buffer

    @property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        weight = self.bases[0].weight
        return weight.device, weight.quant_state.dtype if self.quantised else weight.dtype

    def _zeros(self, *shape: int) -> Tensor:
        device, dtype = self._place
        return torch.zeros(*shape, device=device, dtype=dtype)

    def _joined_bias(self) -> Tensor | None:
        if all(base.bias is None for base in self.bases):
            return None
        parts = [
            self._zeros(rows) if base.bias is None else base.bias.data
            for base, rows in zip(self.bases, self.rows, strict=True)
        ]
        return torch.cat(parts)

    def _rows_of(self, whole: Tensor) -> Sequence[Tensor]:
        """Each map's weights [n, K] in the buffer."""
        parts: Sequence[Tensor] = whole[: self.outputs, : self.inputs].split(self.rows)
        return parts

    @property
    def parameters(self) -> list[Tensor]:
        return [part for adapter in self.adapters if adapter for part in (adapter.a, adapter.b)]

    def refresh(self) -> None:
        """Bring the low-precision copies of A and the scaled B up to date with the trained parameters."""
        column = 0
        for adapter, block in zip(self.adapters, self.b.split(self.rows), strict=True):
            if adapter:
                columns = slice(column, column + adapter.rank)
                self.a[columns].copy_(adapter.a.detach())
                torch.mul(adapter.b.detach(), adapter.scale, out=block[:, columns])
                column += adapter.rank

    def lend(self, whole: Tensor) -> None:
        """Work with this buffer, whose weights are in place, until another is lent."""
        whole[self.outputs :, : self.inputs] = self.a
        whole[: self.outputs, self.inputs :] = self.b
        self.whole = whole

    def _forwards(self) -> Tensor:
        """[W | B], [N, K + e]"""
        if self.whole is not None:
            return self.whole[: self.outputs]
        device, dtype = self._place
        joined = torch.empty(self.outputs, self.inputs + self.inner, device=device, dtype=dtype)
        for base, part in zip(self.bases, self._rows_of(joined), strict=True):
            self._make_dense(base, part)
        joined[:, self.inputs :] = self.b
        return joined

    def _backwards(self) -> Tensor:
        """W with A below it, [N + e, K]"""
        if self.whole is not None:
            return self.whole[:, : self.inputs]
        device, dtype = self._place
        joined = torch.empty(self.outputs + self.inner, self.inputs, device=device, dtype=dtype)
        for base, part in zip(self.bases, self._rows_of(joined), strict=True):
            self._make_dense(base, part)
        joined[self.outputs :] = self.a
        return joined

    def _make_dense(self, base: Any, out: Tensor) -> None:
        """A quantised map's weights into out [n, K]."""
        from bitsandbytes.functional import dequantize_4bit

        if out.is_cuda and out.is_contiguous():  # on a CPU bitsandbytes takes no place for its result
            dequantize_4bit(base.weight.data, base.weight.quant_state, out=out)
        else:
            out.copy_(dequantize_4bit(base.weight.data, base.weight.quant_state).view(-1, self.inputs))

    def room(self, tokens: int) -> Tensor:
        """An uninitialised input [tokens, K + e]; the caller fills the first K columns."""
        return torch.empty(tokens, self.inputs + self.inner, device=self.a.device, dtype=self.a.dtype)

    def gradient_room(self, tokens: int) -> Tensor:
        """Uninitialised outputs [tokens, N] that `backward` takes as a gradient without copying them."""
        return _roomy(tokens, self.outputs, self.inner, self.a)

    def forward(self, x: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [tokens, K + e] from `room` -> (outputs [tokens, N] (+ plus), inner activations [tokens, e] to keep)."""
        inner = x[:, : self.inputs] @ self.a.t()
        x[:, self.inputs :] = inner
        product = _plus_product(out, x, self._forwards().t(), self.bias if plus is None else plus)
        if plus is not None and self.bias is not None:
            product.add_(self.bias)
        return product, inner

    def backward(self, grad: Tensor, *, inputs: bool = True) -> tuple[Tensor | None, Tensor]:
        """grad [tokens, N] -> (gradient of the input [tokens, K] or None, inner gradient [tokens, e])."""
        room = _columns_behind(grad, self.inner)
        inner = room[:, self.outputs :]
        torch.mm(grad, self.b, out=inner)
        return (room @ self._backwards() if inputs else None), inner

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

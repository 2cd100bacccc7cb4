"""Frozen linear layers with LoRA, with hand-written forward and backward passes (used by train/fused/model.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ALIGNED = 8
"""Alignment of rows in elements. Matrix products of other rows run on slower kernels."""


class LoraMaps:
    """Linear layers with the same input and their LoRA branches. Subclasses hold the frozen weights.

    LoRA's width e is the sum of the ranks, rounded up to a multiple of `aligned`. `a` [e, K] and `b` [N, e] are its
    low-precision versions: the A's below each other, the scaled B's as a block diagonal.
    """

    a: Tensor
    b: Tensor

    def __init__(self, modules: Sequence[nn.Module], *, aligned: int) -> None:
        self.bases = [getattr(module, "base_layer", module) for module in modules]
        self.adapters = [_adapter(module) for module in modules]
        self.out_features = [base.out_features for base in self.bases]
        self.inputs: int = self.bases[0].in_features
        self.outputs = sum(self.out_features)
        self.lora_width = -(-sum(adapter.rank for adapter in self.adapters if adapter) // aligned) * aligned
        self.bias = self._concatenated_bias()

    def _concatenated_bias(self) -> Tensor | None:
        if all(base.bias is None for base in self.bases):
            return None
        given = next(base.bias.data for base in self.bases if base.bias is not None)
        parts = [
            given.new_zeros(out_features) if base.bias is None else base.bias.data
            for base, out_features in zip(self.bases, self.out_features, strict=True)
        ]
        return torch.cat(parts)

    @property
    def parameters(self) -> list[Tensor]:
        return [part for adapter in self.adapters if adapter for part in (adapter.a, adapter.b)]

    def _copy_lora(self) -> None:
        """Copy the trained A and the scaled B to `a` and `b`."""
        column = 0
        for adapter, block in zip(self.adapters, self.b.split(self.out_features), strict=True):
            if adapter:
                columns = slice(column, column + adapter.rank)
                self.a[columns].copy_(adapter.a.detach())
                torch.mul(adapter.b.detach(), adapter.scale, out=block[:, columns])
                column += adapter.rank

    def gradients(self, x: Tensor, lora_inner: Tensor, grad: Tensor, grad_lora_inner: Tensor) -> list[Tensor]:
        """Return the gradients of `parameters`.

        x [tokens, K]: the input; lora_inner, grad_lora_inner [tokens, e]: x A' and its gradient; grad [tokens, N].
        """
        if not self.lora_width:
            return []
        da, db = grad_lora_inner.t() @ x, grad.t() @ lora_inner
        gradients: list[Tensor] = []
        column = 0
        for adapter, block in zip(self.adapters, db.split(self.out_features), strict=True):
            if adapter:
                rank = adapter.rank
                part = slice(column, column + rank)
                gradients.append(da[part].to(adapter.a.dtype))
                gradients.append((block[:, part].to(adapter.b.dtype)) * adapter.scale)
                column += rank
        return gradients


class Linear(LoraMaps):
    """One or several linear layers with the same input, computed as one matrix product with their LoRA branches.

    The weights are [N, K] (N: sum of all outputs). LoRA's width e is the sum of the ranks, rounded up to ALIGNED. A
    buffer [N + e, K + e] holds the weights and LoRA: A as e additional rows, the scaled B's (block diagonal) as e
    additional columns,

        W   B        forward:  [x | x A'] [W | B]'          backward:  [g | g B] [W]
        A   .                                                                    [A]

    One product computes both and rounds the sum once. A separate product for LoRA would take ten times as long as its
    arithmetic. It would also lose most of LoRA's effect: the updates of the first steps are smaller than half of the
    last bit of a bfloat16 output, so they vanish in an output that is already rounded
    (tests/train/fused/test_linears.py).

    There are three kinds of buffer:
      - allocated here once; the model's parameters become views of it;
      - set by `set_buffers` while a layer runs, if the ranks shard the weights (train/fused/sharded.py);
      - made for each product from quantized weights, which stay as they are.
    """

    def __init__(self, modules: Sequence[nn.Module], *, sharded: bool = False) -> None:
        super().__init__(modules, aligned=ALIGNED)
        self.quantized = any(hasattr(base.weight, "quant_state") for base in self.bases)
        self.buffer: Tensor | None = None
        """[N + e, K + e], or None if the weights are quantized or not gathered at the moment."""
        self.a = self._zeros(self.lora_width, self.inputs)
        self.b = self._zeros(self.outputs, self.lora_width)
        if self.quantized or sharded:
            return
        self.buffer = self._zeros(self.outputs + self.lora_width, self.inputs + self.lora_width)
        self.a, self.b = self.buffer[self.outputs :, : self.inputs], self.buffer[: self.outputs, self.inputs :]
        for base, part in zip(self.bases, self._base_weights(self.buffer), strict=True):
            part.copy_(base.weight.data)
            base.weight.data = part  # the model's parameter is now a view of the buffer

    @property
    def _device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        weight = self.bases[0].weight
        return weight.device, weight.quant_state.dtype if self.quantized else weight.dtype

    def _zeros(self, *shape: int) -> Tensor:
        device, dtype = self._device_and_dtype
        return torch.zeros(*shape, device=device, dtype=dtype)

    def _base_weights(self, buffer: Tensor) -> Sequence[Tensor]:
        """Return views of the buffer: the weights [n, K] of each base layer."""
        parts: Sequence[Tensor] = buffer[: self.outputs, : self.inputs].split(self.out_features)
        return parts

    def refresh(self) -> None:
        """Copy the trained A and the scaled B to their low-precision versions in the buffer."""
        self._copy_lora()

    def whole_weight(self) -> Tensor:
        """Return the weights [N + e, K + e] with space for LoRA, for ranks that shard them. LoRA is 1% of the bytes, so
        it is gathered too, and a gathered weight has the layout of one that is not sharded."""
        weight = torch.cat([base.weight.data for base in self.bases])
        return nn.functional.pad(weight, (0, self.lora_width, 0, self.lora_width))

    def set_buffers(self, buffer: Tensor, _transposed: Tensor | None) -> None:
        """Use this buffer, which holds the weights, until `drop_buffers`. Copies LoRA into it."""
        buffer[self.outputs :, : self.inputs] = self.a
        buffer[: self.outputs, self.inputs :] = self.b
        self.buffer = buffer
        for base, part in zip(self.bases, self._base_weights(buffer), strict=True):
            base.weight.data = part

    def drop_buffers(self) -> None:
        self.buffer = None
        for base in self.bases:
            base.weight.data = base.weight.data.new_empty(0)

    def _forward_weight(self) -> Tensor:
        """Return [W | B], [N, K + e]."""
        if self.buffer is not None:
            return self.buffer[: self.outputs]
        device, dtype = self._device_and_dtype
        weight = torch.empty(self.outputs, self.inputs + self.lora_width, device=device, dtype=dtype)
        for base, part in zip(self.bases, self._base_weights(weight), strict=True):
            self._dequantize(base, part)
        weight[:, self.inputs :] = self.b
        return weight

    def _backward_weight(self) -> Tensor:
        """Return W with A below it, [N + e, K]."""
        if self.buffer is not None:
            return self.buffer[:, : self.inputs]
        device, dtype = self._device_and_dtype
        weight = torch.empty(self.outputs + self.lora_width, self.inputs, device=device, dtype=dtype)
        for base, part in zip(self.bases, self._base_weights(weight), strict=True):
            self._dequantize(base, part)
        weight[self.outputs :] = self.a
        return weight

    def _dequantize(self, base: Any, out: Tensor) -> None:
        """Write the dequantized weights of a base layer to out [n, K]."""
        from bitsandbytes.functional import dequantize_4bit

        if out.is_cuda and out.is_contiguous():  # on a CPU, bitsandbytes ignores `out`
            dequantize_4bit(base.weight.data, base.weight.quant_state, out=out)
        else:
            out.copy_(dequantize_4bit(base.weight.data, base.weight.quant_state).view(-1, self.inputs))

    def workspace(self, tokens: int) -> Tensor:
        """Return an uninitialized input [tokens, K + e]; the caller fills the first K columns."""
        return torch.empty(tokens, self.inputs + self.lora_width, device=self.a.device, dtype=self.a.dtype)

    def gradient_workspace(self, tokens: int) -> Tensor:
        """Return uninitialized outputs [tokens, N] that `backward` accepts as a gradient without a copy."""
        return _empty_padded(tokens, self.outputs, self.lora_width, self.a)

    def quantized_workspace(self, tokens: int) -> None:
        """Only train.fused.fp8.Fp8Linear takes its input in another form."""

    def quantized_gradient_workspace(self, tokens: int) -> None:
        """Only train.fused.fp8.Fp8Linear takes gradients in another form."""

    def forward(
        self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None, quantized: None = None
    ) -> tuple[Tensor, Tensor]:
        """x [tokens, K + e] from `workspace` -> (outputs [tokens, N] + residual, x A' [tokens, e] for `gradients`)."""
        lora_inner = x[:, : self.inputs] @ self.a.t()
        x[:, self.inputs :] = lora_inner
        product = _matmul_add(out, x, self._forward_weight().t(), self.bias if residual is None else residual)
        if residual is not None and self.bias is not None:
            product.add_(self.bias)
        return product, lora_inner

    def backward(
        self, grad: Tensor, *, needs_input_grad: bool = True, quantized: None = None
    ) -> tuple[Tensor | None, Tensor]:
        """grad [tokens, N] -> (gradient of the input [tokens, K] or None, gradient of x A' [tokens, e])."""
        padded_grad = _with_extra_columns(grad, self.lora_width)
        grad_lora_inner = padded_grad[:, self.outputs :]
        torch.mm(grad, self.b, out=grad_lora_inner)
        return (padded_grad @ self._backward_weight() if needs_input_grad else None), grad_lora_inner


@dataclass(frozen=True)
class _Adapter:
    a: Tensor
    """[rank, inputs]"""
    b: Tensor
    """[outputs, rank]"""
    scale: float
    rank: int


def _empty_padded(rows: int, width: int, extra: int, like: Tensor) -> Tensor:
    """Return uninitialized [rows, width] with memory for `extra` columns after each row."""
    return torch.empty(rows, width + extra, device=like.device, dtype=like.dtype)[:, :width]


def _with_extra_columns(x: Tensor, extra: int) -> Tensor:
    """Return x [rows, width] with `extra` columns after it: the same memory if from `_empty_padded`, else a copy."""
    rows, width = x.shape
    stride = width + extra
    if x.stride() == (stride, 1) and x.untyped_storage().nbytes() == rows * stride * x.element_size():
        return x.as_strided((rows, stride), (stride, 1), 0)
    padded = x.new_empty(rows, stride)
    padded[:, :width] = x
    return padded


def _matmul_add(out: Tensor | None, x: Tensor, weight: Tensor, addend: Tensor | None) -> Tensor:
    """Return x @ weight (+ addend), in `out` if given."""
    if addend is None:
        return torch.mm(x, weight) if out is None else torch.mm(x, weight, out=out)
    return torch.addmm(addend, x, weight) if out is None else torch.addmm(addend, x, weight, out=out)


def _adapter(module: Any) -> _Adapter | None:
    if not hasattr(module, "lora_A") or not module.lora_A:
        return None
    (name,) = module.active_adapters
    a, b = module.lora_A[name], module.lora_B[name]
    return _Adapter(a.weight, b.weight, float(module.scaling[name]), a.out_features)

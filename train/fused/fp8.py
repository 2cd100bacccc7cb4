"""Frozen linear layers in fp8 with LoRA in bfloat16 (used by train/fused/model.py on GPUs that multiply fp8).

Weights and inputs are float8_e4m3fn with one float32 scale per row of what a product sums over:

    forward    x [tokens, K] scaled per token,    W [N, K] scaled per output
    backward   g [tokens, N] scaled per token,    W' [K, N] scaled per input

fp8 matrix instructions read both operands along the dimension that they sum over, so the transposed weights are a copy
of their own: two bytes per weight in all, as many as in bfloat16. Ranks that shard the weights (train/fused/sharded.py)
keep one byte: the same numbers are transposed once gathered, and their scales, which then belong to what is summed
over, go into the gradient before it is quantized. One kernel computes a product, LoRA's part and the
residual connection, and rounds their sum once (train/fused/fp8_triton.py).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.fused.linears import LoraMaps

Quantized = tuple[Tensor, Tensor]
"""float8_e4m3fn [rows, width], scales float32 [rows]: the matrix is about the first times the second."""
FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of float8_e4m3fn."""
ALIGNED = 16
"""LoRA's width is a multiple of this: the least number of terms of a matrix instruction in bfloat16."""
QUANTIZED_ROWS = 1024
"""Rows of the weights that are quantized at a time."""


@functools.cache
def _triton() -> Any:
    from train.fused import fp8_triton

    return fp8_triton


def quantize_rows(x: Tensor, factors: Tensor | None = None) -> Quantized:
    """Quantize x [rows, width].

    The scale maps the largest magnitude of a row to the largest number of the format. A row of zeros has scale 1.
    `factors` float32 [width]: multiply each row by them first.
    """
    if x.is_cuda:
        return _triton().quantize_rows(x, factors)  # type: ignore[no-any-return]
    x = x if factors is None else x.float() * factors
    largest = x.abs().amax(1).float()
    scales = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    return (x.float() / scales[:, None]).clamp(-LARGEST, LARGEST).to(FP8), scales


def matmul(
    x: Quantized,
    weight: Quantized,
    lora: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
) -> Tensor:
    """out [tokens, N] = x weight' + u v' + bias + residual, summed in float32 and rounded once.

    x: [tokens, K] and scales [tokens]; weight: [N, K] and scales [N], both from `quantize_rows`. lora: u [tokens, e],
    v [N, e]. bias [N], residual [tokens, N].
    """
    if out.is_cuda:
        return _triton().matmul(x, weight, lora, bias, residual, out)  # type: ignore[no-any-return]
    total = (x[0].float() * x[1][:, None]) @ (weight[0].float() * weight[1][:, None]).t()
    if lora is not None:
        total += lora[0].float() @ lora[1].float().t()
    for addend in (bias, residual):
        if addend is not None:
            total += addend.float()
    return out.copy_(total)


class Fp8Linear(LoraMaps):
    """One or several linear layers with the same input in one fp8 product, each with its LoRA branch.

    Has the interface of train.fused.linears.Linear. The base layers give up their weights: their own forward pass,
    which generation uses, reads the quantized ones.
    """

    def __init__(self, modules: Sequence[nn.Module], *, sharded: bool = False) -> None:
        super().__init__(modules, aligned=ALIGNED)
        weight = self.bases[0].weight
        self.device, self.dtype = weight.device, weight.dtype
        self.a = self._zeros(self.lora_width, self.inputs)
        self.b = self._zeros(self.outputs, self.lora_width)
        self.a_transposed = self._zeros(self.inputs, self.lora_width)
        self.sharded = sharded
        self.weight = self._empty_fp8(0 if sharded else self.outputs, self.inputs)
        self.transposed = self._empty_fp8(0 if sharded else self.inputs, self.outputs)
        rows = self._base_rows
        for base, part in zip(self.bases, rows, strict=True):
            base.forward = functools.partial(self._base_forward, base.bias, part)
        if not sharded:
            self._take_weights()

    @property
    def _base_rows(self) -> list[slice]:
        """Rows of each base layer in the concatenated weight."""
        ends = list(itertools.accumulate(self.out_features))
        return [slice(end - rows, end) for rows, end in zip(self.out_features, ends, strict=True)]

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, device=self.device, dtype=self.dtype)

    def _empty_fp8(self, rows: int, width: int) -> Quantized:
        scales = torch.empty(rows, device=self.device, dtype=torch.float32)
        return torch.empty(rows, width, device=self.device, dtype=FP8), scales

    def _take_weights(self) -> None:
        """Quantize the weights in both layouts. The base layers give up theirs."""
        both = torch.cat([base.weight.data for base in self.bases])
        for source, target in ((both, self.weight), (both.t(), self.transposed)):
            self._quantize(source, target)
        for base in self.bases:
            base.weight.data = base.weight.data.new_empty(0)

    @staticmethod
    def _quantize(source: Tensor, target: Quantized) -> None:
        parts = (part.split(QUANTIZED_ROWS) for part in (source, *target))
        for part, out, scale in zip(*parts, strict=True):
            values, found = quantize_rows(part.contiguous())
            out.copy_(values)
            scale.copy_(found)

    def whole_weight(self) -> Tensor:
        """Return the quantized weights [N, K] as bytes, for ranks that shard them. Each rank keeps all scales."""
        found = self._empty_fp8(self.outputs, self.inputs)
        self._quantize(torch.cat([base.weight.data for base in self.bases]), found)
        self.weight = found[0].new_empty(0, self.inputs), found[1]
        self.transposed = self.transposed[0], torch.ones(self.inputs, device=self.device)
        return found[0].view(torch.uint8)

    def set_buffers(self, weight: Tensor, transposed: Tensor | None) -> None:
        """Use these buffers, which hold the bytes of `whole_weight`, until `drop_buffers`."""
        self.weight = weight.view(FP8), self.weight[1]
        if transposed is not None:
            self.transposed = transposed.view(FP8), self.transposed[1]

    def drop_buffers(self) -> None:
        self.weight = self.weight[0][:0], self.weight[1]
        self.transposed = self.transposed[0][:0], self.transposed[1]

    def _base_forward(self, bias: Tensor | None, rows: slice, x: Tensor) -> Tensor:
        """The forward pass of a base layer: its quantized weights in the dtype of x, for a few tokens at a time."""
        weight = self.weight[0][rows].to(torch.float32) * self.weight[1][rows, None]
        return functional.linear(x, weight.to(x.dtype), bias)

    def refresh(self) -> None:
        """Copy the trained A and the scaled B to their bfloat16 versions."""
        self._copy_lora()
        self.a_transposed.copy_(self.a.t())

    def workspace(self, tokens: int) -> Tensor:
        """Return an uninitialized input [tokens, K]."""
        return torch.empty(tokens, self.inputs, device=self.device, dtype=self.dtype)

    def gradient_workspace(self, tokens: int) -> Tensor:
        """Return uninitialized outputs [tokens, N]."""
        return torch.empty(tokens, self.outputs, device=self.device, dtype=self.dtype)

    def quantized_workspace(self, tokens: int) -> Quantized | None:
        """Return an uninitialized input in fp8, for the kernel that computes the input."""
        return self._empty_fp8(tokens, self.inputs)

    def quantized_gradient_workspace(self, tokens: int) -> Quantized | None:
        """Return uninitialized outputs in fp8, for the kernel that computes their gradient.

        None where the gradient is multiplied by the scales of shared weights first.
        """
        return None if self.sharded else self._empty_fp8(tokens, self.outputs)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None, quantized: Quantized | None = None
    ) -> tuple[Tensor, Tensor]:
        """x [tokens, K] -> (outputs [tokens, N] + residual, x A' [tokens, e] for `gradients`).

        `quantized`: x in fp8, if it exists already.
        """
        lora_inner = x @ self.a.t()
        lora = (lora_inner, self.b) if self.lora_width else None
        out = self.gradient_workspace(len(x)) if out is None else out
        return matmul(quantized or quantize_rows(x), self.weight, lora, self.bias, residual, out), lora_inner

    def backward(
        self, grad: Tensor, *, needs_input_grad: bool = True, quantized: Quantized | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """grad [tokens, N] -> (gradient of the input [tokens, K] or None, gradient of x A' [tokens, e]).

        `quantized`: grad in fp8, if it exists already.
        """
        grad_lora_inner = grad @ self.b
        if not needs_input_grad:
            return None, grad_lora_inner
        lora = (grad_lora_inner, self.a_transposed) if self.lora_width else None
        out = self.workspace(len(grad))
        if quantized is None:
            quantized = quantize_rows(grad, self.weight[1] if self.sharded else None)
        return matmul(quantized, self.transposed, lora, None, None, out), grad_lora_inner

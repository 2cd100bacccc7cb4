"""Triton kernels of train/fused/fp8.py, for GPUs with fp8 matrix instructions and tensor memory access (Hopper)."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

TILE = 128, 256, 128
"""Rows, columns and terms of a tile, with 8 warps and 3 stages. Of ten tilings of the shapes of an 8B model on an H200
it was the fastest or within 2%: 1,190 to 1,530 TFLOP/s, LoRA included, where cuBLAS reaches 1,270 to 1,480 without."""
GROUP = 16
"""Rows of tiles that are computed together, so that they share the weights in the cache."""


@triton.jit
def _quantize_rows(x, x_row, factors, out, scales, width, FACTORS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < width
    value = tl.load(x + row * x_row + offsets, mask=mask, other=0.0).to(tl.float32)
    if FACTORS:
        value *= tl.load(factors + offsets, mask=mask, other=0.0)
    largest = tl.max(tl.abs(value), axis=0)
    scale = tl.where(largest > 0.0, largest / 448.0, 1.0)
    tl.store(scales + row, scale)
    tl.store(out + row * width + offsets, (value / scale).to(tl.float8e4nv), mask=mask)


def quantize_rows(x: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    warps = 4 if block <= 4096 else 8 if block <= 8192 else 16 if block <= 16384 else 32
    given = scales if factors is None else factors
    _quantize_rows[(rows,)](
        x, x.stride(0), given, out, scales, width, FACTORS=factors is not None, BLOCK=block, num_warps=warps
    )
    return out, scales


@triton.jit
def _matmul(
    x, x_scales, weight, weight_scales, u, v, bias, residual, out, rows, columns, terms,
    LORA: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, PROGRAMS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Each program computes every PROGRAMS-th tile of the output. Tensors are descriptors, except scales and bias."""
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    for tile in range(tl.program_id(0), down * across, PROGRAMS):
        first = tile // (GROUP * across) * GROUP
        height = min(down - first, GROUP)
        row = (first + tile % (GROUP * across) % height) * ROWS
        column = tile % (GROUP * across) // height * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for term in range(0, terms, TERMS):
            total = tl.dot(x.load([row, term]), weight.load([column, term]).T, total)
        at_rows, at_columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        total *= tl.load(x_scales + at_rows, mask=at_rows < rows, other=0.0)[:, None]
        total *= tl.load(weight_scales + at_columns, mask=at_columns < columns, other=0.0)[None, :]
        if LORA:
            total = tl.dot(u.load([row, 0]), v.load([column, 0]).T, total)
        if BIAS:
            total += tl.load(bias + at_columns, mask=at_columns < columns, other=0.0).to(tl.float32)[None, :]
        if RESIDUAL:
            total += residual.load([row, column]).to(tl.float32)
        out.store([row, column], total.to(tl.bfloat16))


@functools.cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def matmul(
    x: tuple[Tensor, Tensor],
    weight: tuple[Tensor, Tensor],
    lora: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
) -> Tensor:
    rows, terms = x[0].shape
    columns = len(weight[0])
    at_rows, at_columns, at_terms = TILE
    tiled_out = TensorDescriptor.from_tensor(out, [at_rows, at_columns])
    tiled_u = tiled_v = tiled_out
    if lora is not None:
        width = triton.next_power_of_2(lora[0].shape[1])
        tiled_u = TensorDescriptor.from_tensor(lora[0], [at_rows, width])
        tiled_v = TensorDescriptor.from_tensor(lora[1], [at_columns, width])
    programs = min(_processors(out.device.index or 0), triton.cdiv(rows, at_rows) * triton.cdiv(columns, at_columns))
    _matmul[(programs,)](
        TensorDescriptor.from_tensor(x[0], [at_rows, at_terms]), x[1],
        TensorDescriptor.from_tensor(weight[0], [at_columns, at_terms]), weight[1],
        tiled_u, tiled_v, bias,
        tiled_out if residual is None else TensorDescriptor.from_tensor(residual, [at_rows, at_columns]),
        tiled_out, rows, columns, terms,
        LORA=lora is not None, BIAS=bias is not None, RESIDUAL=residual is not None, PROGRAMS=programs,
        ROWS=at_rows, COLUMNS=at_columns, TERMS=at_terms, GROUP=GROUP, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out

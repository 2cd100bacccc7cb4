"""Triton versions of train/fused/kernels.py. One program per row, or per block of a row; arithmetic in float32.

With `quantized`, a kernel also writes its result in fp8. That takes the largest magnitude of a row, so one program
has the row, and quantizes what it has just rounded: the result equals that of a pass of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

Quantized = tuple[Tensor, Tensor]
"""float8_e4m3fn [rows, width], scales float32 [rows] (train/fused/fp8.py)."""


def _warps(block: int) -> int:
    return 4 if block <= 2048 else 8 if block <= 8192 else 16


@triton.jit
def _row_scale(largest):
    return tl.where(largest > 0.0, largest / 448.0, 1.0)


@triton.jit
def _store_quantized(value, values, scales, row, width, offsets, mask):
    """Store a row that one program holds whole."""
    scale = _row_scale(tl.max(tl.abs(value), axis=0))
    tl.store(scales + row, scale)
    tl.store(values + row * width + offsets, (value / scale).to(tl.float8e4nv), mask=mask)


@triton.jit
def _rms_norm(
    x, x_row, weight, out, out_row, values, scales, inverse_rms, width, eps,
    RECOMPUTE: tl.constexpr, FP8: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < width
    value = tl.load(x + row * x_row + offsets, mask=mask, other=0.0).to(tl.float32)
    if RECOMPUTE:
        scale = tl.load(inverse_rms + row)
    else:
        scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / width + eps)
        tl.store(inverse_rms + row, scale)
    factor = tl.load(weight + offsets, mask=mask, other=0.0).to(tl.float32)
    unit = value * scale
    if ROUND:  # to the model's dtype before the weight is applied, as in transformers; Gemma's float32 weights are not
        unit = unit.to(out.dtype.element_ty).to(tl.float32)
    result = (unit * factor).to(out.dtype.element_ty)
    tl.store(out + row * out_row + offsets, result, mask=mask)
    if FP8:
        _store_quantized(result.to(tl.float32), values, scales, row, width, offsets, mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, quantized: Quantized | None) -> Tensor:
    inverse_rms = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    _launch_rms_norm(x, weight, out, inverse_rms, eps, quantized, recompute=False)
    return inverse_rms


def recompute_rms_norm(x: Tensor, weight: Tensor, inverse_rms: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _launch_rms_norm(x, weight, out, inverse_rms, 0.0, None, recompute=True)
    return out


def _launch_rms_norm(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    inverse_rms: Tensor,
    eps: float,
    quantized: Quantized | None,
    *,
    recompute: bool,
) -> None:
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    values, scales = quantized or (out, inverse_rms)
    _rms_norm[(rows,)](
        x, x.stride(0), weight, out, out.stride(0), values, scales, inverse_rms, width, eps,
        RECOMPUTE=recompute, FP8=quantized is not None, ROUND=weight.dtype == out.dtype, BLOCK=block,
        num_warps=_warps(block),
    )  # fmt: skip


@triton.jit
def _rms_norm_backward(
    grad, grad_row, x, x_row, weight, inverse_rms, skip, skip_row, out, out_row, values, scales, width,
    SKIP: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < width
    scale = tl.load(inverse_rms + row)
    unit = tl.load(x + row * x_row + offsets, mask=mask, other=0.0).to(tl.float32) * scale
    scaled = tl.load(grad + row * grad_row + offsets, mask=mask, other=0.0).to(tl.float32)
    scaled = scaled * tl.load(weight + offsets, mask=mask, other=0.0).to(tl.float32)
    result = scale * (scaled - unit * (tl.sum(scaled * unit, axis=0) / width))
    if SKIP:
        result += tl.load(skip + row * skip_row + offsets, mask=mask, other=0.0).to(tl.float32)
    result = result.to(out.dtype.element_ty)
    tl.store(out + row * out_row + offsets, result, mask=mask)
    if FP8:
        _store_quantized(result.to(tl.float32), values, scales, row, width, offsets, mask)


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    inverse_rms: Tensor,
    skip: Tensor | None,
    out: Tensor,
    quantized: Quantized | None,
) -> Tensor:
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    other = grad if skip is None else skip
    values, scales = quantized or (out, inverse_rms)
    _rms_norm_backward[(rows,)](
        grad, grad.stride(0), x, x.stride(0), weight, inverse_rms, other, other.stride(0), out, out.stride(0), values,
        scales, width, SKIP=skip is not None, FP8=quantized is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return out


@triton.jit
def _apply_rope(
    x, x_row, out, out_row, cos, sin, positions, query_weight, key_weight, eps,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, HALF: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """Rotate all heads of one row: a block [heads, half] for each half of the head dimension."""
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, PAIRS)
    head = tl.arange(0, HEADS)
    rotated = head < QUERIES + KEYS
    mask = rotated[:, None] & (pair < HALF)[None, :]
    offsets = head[:, None] * (2 * HALF) + pair[None, :]
    position = tl.load(positions + row)
    c = tl.load(cos + position * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    s = tl.load(sin + position * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    low = tl.load(x + row * x_row + offsets, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(x + row * x_row + offsets + HALF, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        scale = 1.0 / tl.sqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / (2 * HALF) + eps)
        is_query = (head < QUERIES)[:, None]
        w_low = tl.where(
            is_query,
            tl.load(query_weight + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :],
            tl.load(key_weight + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :],
        )
        w_high = tl.where(
            is_query,
            tl.load(query_weight + HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :],
            tl.load(key_weight + HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :],
        )
        low = low * scale[:, None] * w_low
        high = high * scale[:, None] * w_high
    dtype = out.dtype.element_ty
    tl.store(out + row * out_row + offsets, (low * c - high * s).to(dtype), mask=mask)
    tl.store(out + row * out_row + offsets + HALF, (high * c + low * s).to(dtype), mask=mask)


def apply_rope(
    qkv: Tensor,
    out: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    queries: int,
    keys: int,
    norms: tuple[Tensor, Tensor, float] | None,
) -> None:
    half = cos.shape[1]
    query_weight, key_weight, eps = norms or (cos, cos, 0.0)
    _apply_rope[(qkv.shape[0],)](
        qkv, qkv.stride(0), out, out.stride(0), cos, sin, positions, query_weight, key_weight, eps,
        QUERIES=queries, KEYS=keys, HEADS=triton.next_power_of_2(queries + keys), PAIRS=triton.next_power_of_2(half),
        HALF=half, NORM=norms is not None, num_warps=4,
    )  # fmt: skip


@triton.jit
def _apply_rope_backward(
    grad, grad_row, first_head, raw, raw_row, out, out_row, cos, sin, positions, weight, eps,
    COUNT: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Write the gradient of `COUNT` heads (grad [rows, COUNT, dim]) to the heads of `out` from first_head on."""
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, PAIRS)
    head = tl.arange(0, HEADS)
    mask = (head < COUNT)[:, None] & (pair < HALF)[None, :]
    offsets = head[:, None] * (2 * HALF) + pair[None, :]
    position = tl.load(positions + row)
    c = tl.load(cos + position * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    s = tl.load(sin + position * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    g_low = tl.load(grad + row * grad_row + offsets, mask=mask, other=0.0).to(tl.float32)
    g_high = tl.load(grad + row * grad_row + offsets + HALF, mask=mask, other=0.0).to(tl.float32)
    low = g_low * c + g_high * s
    high = g_high * c - g_low * s
    shift = first_head * (2 * HALF)
    if NORM:
        w_low = tl.load(weight + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
        w_high = tl.load(weight + HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
        r_low = tl.load(raw + row * raw_row + shift + offsets, mask=mask, other=0.0).to(tl.float32)
        r_high = tl.load(raw + row * raw_row + shift + offsets + HALF, mask=mask, other=0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt((tl.sum(r_low * r_low, axis=1) + tl.sum(r_high * r_high, axis=1)) / (2 * HALF) + eps)
        r_low = r_low * scale[:, None]
        r_high = r_high * scale[:, None]
        low = low * w_low
        high = high * w_high
        mean = (tl.sum(low * r_low, axis=1) + tl.sum(high * r_high, axis=1)) / (2 * HALF)
        low = scale[:, None] * (low - r_low * mean[:, None])
        high = scale[:, None] * (high - r_high * mean[:, None])
    dtype = out.dtype.element_ty
    tl.store(out + row * out_row + shift + offsets, low.to(dtype), mask=mask)
    tl.store(out + row * out_row + shift + offsets + HALF, high.to(dtype), mask=mask)


def apply_rope_backward(
    grad: Tensor,
    first_head: int,
    raw: Tensor | None,
    out: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    norm: tuple[Tensor, float] | None,
) -> None:
    rows, count, _ = grad.shape
    half = cos.shape[1]
    weight, eps = norm or (cos, 0.0)
    source = out if raw is None else raw
    _apply_rope_backward[(rows,)](
        grad, grad.stride(0), first_head, source, source.stride(0), out, out.stride(0), cos, sin, positions, weight,
        eps,
        COUNT=count, HEADS=triton.next_power_of_2(count), PAIRS=triton.next_power_of_2(half), HALF=half,
        NORM=norm is not None, num_warps=4,
    )  # fmt: skip


@triton.jit
def _apply_rope_interleaved(
    x, x_row, cos, sin, positions,
    COUNT: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, HALF: tl.constexpr,
    INVERSE: tl.constexpr,
):  # fmt: skip
    """Rotate the first 2 * HALF elements of each head of a row in place. Adjacent elements are loaded together."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)
    pair = tl.arange(0, PAIRS)
    element = tl.arange(0, 2 * PAIRS)
    mask = (head < COUNT)[:, None] & (element < 2 * HALF)[None, :]
    place = x + row * x_row + head[:, None] * DIM + element[None, :]
    position = tl.load(positions + row)
    c = tl.load(cos + position * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    s = tl.load(sin + position * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    if INVERSE:
        s = -s
    value = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    first, second = tl.split(tl.reshape(value, (HEADS, PAIRS, 2)))
    rotated = tl.join(first * c - second * s, second * c + first * s)
    tl.store(place, tl.reshape(rotated, (HEADS, 2 * PAIRS)).to(x.dtype.element_ty), mask=mask)


def apply_rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, inverse: bool) -> None:
    rows, count, dim = x.shape
    half = cos.shape[1]
    _apply_rope_interleaved[(rows,)](
        x, x.stride(0), cos, sin, positions, COUNT=count, DIM=dim, HEADS=triton.next_power_of_2(count),
        PAIRS=triton.next_power_of_2(half), HALF=half, INVERSE=inverse, num_warps=4,
    )  # fmt: skip


@triton.jit
def _swiglu_of(gate_up, gate_up_row, row, width, offsets, mask, dtype: tl.constexpr):
    gate = tl.load(gate_up + row * gate_up_row + offsets, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_up_row + width + offsets, mask=mask, other=0.0).to(tl.float32)
    return (gate * tl.sigmoid(gate) * up).to(dtype)


@triton.jit
def _quantize_stored(x, values, scales, row, largest, width: tl.constexpr, BLOCK: tl.constexpr):
    """Quantize a row that this program has just stored at x: it comes from the cache."""
    scale = _row_scale(tl.max(largest, axis=0))
    tl.store(scales + row, scale)
    tl.debug_barrier()
    for start in range(0, width, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < width
        value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(values + row * width + offsets, (value / scale).to(tl.float8e4nv), mask=mask)


@triton.jit
def _swiglu_fp8(gate_up, gate_up_row, out, out_row, values, scales, width: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    dtype = out.dtype.element_ty
    offsets = tl.arange(0, BLOCK)
    if width <= BLOCK:
        mask = offsets < width
        product = _swiglu_of(gate_up, gate_up_row, row, width, offsets, mask, dtype)
        tl.store(out + row * out_row + offsets, product, mask=mask)
        _store_quantized(product.to(tl.float32), values, scales, row, width, offsets, mask)
    else:
        largest = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, width, BLOCK):
            mask = start + offsets < width
            product = _swiglu_of(gate_up, gate_up_row, row, width, start + offsets, mask, dtype)
            largest = tl.maximum(largest, tl.abs(product.to(tl.float32)))
            tl.store(out + row * out_row + start + offsets, product, mask=mask)
        _quantize_stored(out + row * out_row, values, scales, row, largest, width, BLOCK)


@triton.jit
def _swiglu_gradients(gate_up, gate_up_row, grad, grad_row, row, width, offsets, mask):
    """Overwrite gate and up with their gradients, which are returned, and `grad` with the product."""
    dtype = gate_up.dtype.element_ty
    gate = tl.load(gate_up + row * gate_up_row + offsets, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_up_row + width + offsets, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + row * grad_row + offsets, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    d_gate = (g * up * sigmoid * (1.0 + gate - silu)).to(dtype)
    d_up = (g * silu).to(dtype)
    tl.store(grad + row * grad_row + offsets, (silu * up).to(dtype), mask=mask)
    tl.store(gate_up + row * gate_up_row + offsets, d_gate, mask=mask)
    tl.store(gate_up + row * gate_up_row + width + offsets, d_up, mask=mask)
    return d_gate, d_up


@triton.jit
def _swiglu_backward_fp8(
    gate_up, gate_up_row, grad, grad_row, values, scales, width: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """As `_swiglu_backward`; the gradients of gate and up are quantized as one row."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    if width <= BLOCK:
        mask = offsets < width
        d_gate, d_up = _swiglu_gradients(gate_up, gate_up_row, grad, grad_row, row, width, offsets, mask)
        gate32, up32 = d_gate.to(tl.float32), d_up.to(tl.float32)
        scale = _row_scale(tl.max(tl.maximum(tl.abs(gate32), tl.abs(up32)), axis=0))
        tl.store(scales + row, scale)
        start = values + row * 2 * width
        tl.store(start + offsets, (gate32 / scale).to(tl.float8e4nv), mask=mask)
        tl.store(start + width + offsets, (up32 / scale).to(tl.float8e4nv), mask=mask)
    else:
        largest = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, width, BLOCK):
            mask = start + offsets < width
            d_gate, d_up = _swiglu_gradients(gate_up, gate_up_row, grad, grad_row, row, width, start + offsets, mask)
            largest = tl.maximum(largest, tl.maximum(tl.abs(d_gate.to(tl.float32)), tl.abs(d_up.to(tl.float32))))
        _quantize_stored(gate_up + row * gate_up_row, values, scales, row, largest, 2 * width, BLOCK)


@triton.jit
def _swiglu(gate_up, gate_up_row, out, out_row, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < width
    product = _swiglu_of(gate_up, gate_up_row, row, width, offsets, mask, out.dtype.element_ty)
    tl.store(out + row * out_row + offsets, product, mask=mask)


@triton.jit
def _swiglu_backward(gate_up, gate_up_row, grad, grad_row, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    _swiglu_gradients(gate_up, gate_up_row, grad, grad_row, row, width, offsets, offsets < width)


_SWIGLU_BLOCK = 2048
FP8_FORWARD = {"BLOCK": 16384, "num_warps": 32}
FP8_BACKWARD = {"BLOCK": 4096, "num_warps": 16}
"""A row that is wider than BLOCK is read again, so the rows in flight must fit the L2 cache: many threads per row."""


def swiglu(gate_up: Tensor, out: Tensor, quantized: Quantized | None) -> None:
    rows, width = out.shape
    if quantized is not None:
        _swiglu_fp8[(rows,)](gate_up, gate_up.stride(0), out, out.stride(0), *quantized, width, **FP8_FORWARD)
        return
    grid = (rows, triton.cdiv(width, _SWIGLU_BLOCK))
    _swiglu[grid](gate_up, gate_up.stride(0), out, out.stride(0), width, BLOCK=_SWIGLU_BLOCK, num_warps=8)


def swiglu_backward(gate_up: Tensor, grad: Tensor, quantized: Quantized | None) -> None:
    rows, width = grad.shape
    if quantized is not None:
        strides = gate_up.stride(0), grad.stride(0)
        _swiglu_backward_fp8[(rows,)](gate_up, strides[0], grad, strides[1], *quantized, width, **FP8_BACKWARD)
        return
    grid = (rows, triton.cdiv(width, _SWIGLU_BLOCK))
    _swiglu_backward[grid](gate_up, gate_up.stride(0), grad, grad.stride(0), width, BLOCK=_SWIGLU_BLOCK, num_warps=8)


@triton.jit
def _gelu_parts(gate):
    """(argument of the sigmoid that GELU multiplies by, its derivative): train/fused/kernels.py."""
    inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    slope = 1.5957691216057308 * (1.0 + 0.134145 * gate * gate)
    return inner, slope


@triton.jit
def _geglu(gate_up, gate_up_row, out, out_row, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < width
    gate = tl.load(gate_up + row * gate_up_row + offsets, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_up_row + width + offsets, mask=mask, other=0.0).to(tl.float32)
    inner, _ = _gelu_parts(gate)
    tl.store(out + row * out_row + offsets, (gate * tl.sigmoid(inner) * up).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _geglu_backward(gate_up, gate_up_row, grad, grad_row, width, BLOCK: tl.constexpr):
    """As `_swiglu_backward`."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < width
    gate = tl.load(gate_up + row * gate_up_row + offsets, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_up_row + width + offsets, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + row * grad_row + offsets, mask=mask, other=0.0).to(tl.float32)
    inner, slope = _gelu_parts(gate)
    sigmoid = tl.sigmoid(inner)
    activated = gate * sigmoid
    d_gate = g * up * sigmoid * (1.0 + (gate - activated) * slope)
    dtype = gate_up.dtype.element_ty
    tl.store(grad + row * grad_row + offsets, (activated * up).to(dtype), mask=mask)
    tl.store(gate_up + row * gate_up_row + offsets, d_gate.to(dtype), mask=mask)
    tl.store(gate_up + row * gate_up_row + width + offsets, (g * activated).to(dtype), mask=mask)


def geglu(gate_up: Tensor, out: Tensor) -> None:
    rows, width = out.shape
    grid = (rows, triton.cdiv(width, _SWIGLU_BLOCK))
    _geglu[grid](gate_up, gate_up.stride(0), out, out.stride(0), width, BLOCK=_SWIGLU_BLOCK, num_warps=8)


def geglu_backward(gate_up: Tensor, grad: Tensor) -> None:
    rows, width = grad.shape
    grid = (rows, triton.cdiv(width, _SWIGLU_BLOCK))
    _geglu_backward[grid](gate_up, gate_up.stride(0), grad, grad.stride(0), width, BLOCK=_SWIGLU_BLOCK, num_warps=8)


@triton.jit
def _cross_entropy(logits, logits_row, targets, losses, width: tl.constexpr, BLOCK: tl.constexpr):
    """Compute the loss of a row, then overwrite its logits with the gradient; the second pass reads mostly cache."""
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * logits_row
    row_max = -float("inf")
    row_sum = 0.0
    for offset in range(0, width, BLOCK):
        offsets = offset + tl.arange(0, BLOCK)
        value = tl.load(start + offsets, mask=offsets < width, other=-float("inf")).to(tl.float32)
        new_max = tl.maximum(row_max, tl.max(value, axis=0))
        row_sum = row_sum * tl.exp(row_max - new_max) + tl.sum(tl.exp(value - new_max), axis=0)
        row_max = new_max
    log_sum = row_max + tl.log(row_sum)
    target = tl.load(targets + row)
    tl.store(losses + row, log_sum - tl.load(start + target).to(tl.float32))
    tl.debug_barrier()
    for offset in range(0, width, BLOCK):
        offsets = offset + tl.arange(0, BLOCK)
        value = tl.load(start + offsets, mask=offsets < width, other=-float("inf")).to(tl.float32)
        probs = tl.exp(value - log_sum)
        probs = tl.where(offsets == target, probs - 1.0, probs)
        tl.store(start + offsets, probs.to(logits.dtype.element_ty), mask=offsets < width)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    rows, width = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = min(8192, triton.next_power_of_2(width))
    _cross_entropy[(rows,)](logits, logits.stride(0), targets, losses, width, BLOCK=block, num_warps=16)
    return losses

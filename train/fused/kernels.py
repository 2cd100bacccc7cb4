"""Memory-bound steps of a transformer layer, each one pass over its tensors: Triton on a GPU, torch elsewhere.

    rms_norm · rms_norm_backward · apply_rope · apply_rope_backward · swiglu · swiglu_backward · cross_entropy

Every function computes in float32 and rounds once at the end. Triton is imported only for CUDA tensors. Rows of outputs
may be strided: train/fused/model.py stores LoRA's inner activations between them.

Where the next product takes fp8 (train/fused/fp8.py), `quantized` gets the rounded result in that form too:
float8_e4m3fn [rows, width] and scales [rows], as `quantize_rows` would make them, but without reading the result again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from train.fused.fp8 import Quantized, quantize_rows


@functools.cache
def _triton() -> Any:
    from train.fused import kernels_triton

    return kernels_triton


def _quantize(x: Tensor, quantized: Quantized | None) -> None:
    if quantized is not None:
        for out, part in zip(quantized, quantize_rows(x), strict=True):
            out.copy_(part)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, quantized: Quantized | None = None) -> Tensor:
    """out = weight * x / rms(x) for each row; return 1/rms, float32 [rows].  x, out [rows, width]."""
    if x.is_cuda:
        return _triton().rms_norm(x, weight, eps, out, quantized)
    inverse_rms = torch.rsqrt(x.float().square().mean(-1) + eps)
    out.copy_(recompute_rms_norm(x, weight, inverse_rms))
    _quantize(out, quantized)
    return inverse_rms


def recompute_rms_norm(x: Tensor, weight: Tensor, inverse_rms: Tensor) -> Tensor:
    """Recompute rms_norm's output from its saved 1/rms."""
    if x.is_cuda:
        return _triton().recompute_rms_norm(x, weight, inverse_rms)
    unit = x.float() * inverse_rms[:, None]
    return (unit * weight).to(x.dtype) if _rounds_once(x, weight) else unit.to(x.dtype) * weight


def _rounds_once(x: Tensor, weight: Tensor) -> bool:
    """Gemma multiplies by its weights in float32; the others round to the model's dtype before."""
    return weight.dtype == torch.float32 != x.dtype


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    inverse_rms: Tensor,
    skip: Tensor | None,
    out: Tensor,
    quantized: Quantized | None = None,
) -> Tensor:
    """Write to `out` the gradient of the norm's input plus `skip`, the gradient of the residual connection."""
    if x.is_cuda:
        return _triton().rms_norm_backward(grad, x, weight, inverse_rms, skip, out, quantized)
    scaled, unit = grad.float() * weight.float(), x.float() * inverse_rms[:, None]
    grad_x = inverse_rms[:, None] * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))
    out.copy_(grad_x if skip is None else grad_x + skip.float())
    _quantize(out, quantized)
    return out


def apply_rope(
    qkv: Tensor,
    out: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    queries: int,
    keys: int,
    norms: tuple[Tensor, Tensor, float] | None = None,
) -> None:
    """Apply rotary embeddings to the query and key heads of qkv [rows, heads, dim]; write to `out`, which may be qkv.

    Heads are in the order queries, keys, values; values are not read. cos, sin [positions, dim/2] float32.
    norms: (query weight, key weight, eps) if each head is normalized before it is rotated (Qwen3).
    """
    if qkv.is_cuda:
        return _triton().apply_rope(qkv, out, cos, sin, positions, queries, keys, norms)
    x = qkv[:, : queries + keys].float()
    if norms is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norms[2])
        x = x * _head_weights(norms[0], norms[1], queries, keys)
    low, high = x.chunk(2, dim=-1)
    c, s = cos[positions][:, None], sin[positions][:, None]
    out[:, : queries + keys] = torch.cat([low * c - high * s, high * c + low * s], dim=-1).to(out.dtype)
    return None


def _head_weights(query: Tensor, key: Tensor, queries: int, keys: int) -> Tensor:
    return torch.cat([query.float().expand(queries, -1), key.float().expand(keys, -1)])


def apply_rope_backward(
    grad: Tensor,
    first_head: int,
    raw: Tensor | None,
    out: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    norm: tuple[Tensor, float] | None = None,
) -> None:
    """Write the gradient of the input of `apply_rope` to the heads of `out` from first_head on.

    grad [rows, heads, dim] is the gradient of the rotated heads. `raw` [rows, all heads, dim] is the input of
    `apply_rope`, needed only with a norm.
    """
    if grad.is_cuda:
        return _triton().apply_rope_backward(grad, first_head, raw, out, cos, sin, positions, norm)
    low, high = grad.float().chunk(2, dim=-1)
    c, s = cos[positions][:, None], sin[positions][:, None]
    grad_x = torch.cat([low * c + high * s, high * c - low * s], dim=-1)
    heads = slice(first_head, first_head + grad.shape[1])
    if norm is not None:
        assert raw is not None
        x = raw[:, heads].float()
        inverse_rms = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm[1])
        unit, grad_x = x * inverse_rms, grad_x * norm[0].float()
        grad_x = inverse_rms * (grad_x - unit * (grad_x * unit).mean(-1, keepdim=True))
    out[:, heads] = grad_x.to(out.dtype)
    return None


def apply_rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, inverse: bool = False) -> None:
    """Apply GLM's interleaved rotary embedding in place, or its inverse to a gradient.

    x [rows, heads, dim], heads contiguous: of the first 2 * cos.shape[1] elements of a head, adjacent ones are rotated
    as pairs.
    """
    if x.is_cuda:
        return _triton().apply_rope_interleaved(x, cos, sin, positions, inverse=inverse)
    rotated = x[..., : 2 * cos.shape[1]]
    first, second = rotated.float().unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[positions][:, None], sin[positions][:, None]
    s = -s if inverse else s
    rotated.copy_(torch.stack([first * c - second * s, second * c + first * s], dim=-1).flatten(-2))
    return None


def apply_rope_in_part(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, inverse: bool = False) -> None:
    """Rotate the two halves of the first 2 * cos.shape[1] elements of each head in place, or a gradient back.

    x [rows, heads, dim]. This uses torch on a GPU too: it is a small part of a layer's memory traffic.
    """
    rotated = x[..., : 2 * cos.shape[1]]
    first, second = rotated.float().chunk(2, dim=-1)
    c, s = cos[positions][:, None], sin[positions][:, None]
    s = -s if inverse else s
    rotated.copy_(torch.cat([first * c - second * s, second * c + first * s], dim=-1))


GELU_ROOT, GELU_CUBE = 0.7978845608028654, 0.044715
"""gelu(x) = x / 2 * (1 + tanh(GELU_ROOT * (x + GELU_CUBE * x^3))): Hendrycks and Gimpel 2016, arXiv 1606.08415."""


def swiglu(gate_up: Tensor, out: Tensor, quantized: Quantized | None = None, *, gelu: bool = False) -> None:
    """out = silu(gate) * up;  gate_up [rows, 2 * width] is gate and up side by side, out [rows, width].

    gelu: with GELU by its tanh formula in the place of SiLU.
    """
    if gate_up.is_cuda and gelu:
        _triton().geglu(gate_up, out)
        return _quantize(out, quantized)
    if gate_up.is_cuda:
        return _triton().swiglu(gate_up, out, quantized)
    gate, up = gate_up.float().chunk(2, dim=-1)
    activated = functional.gelu(gate, approximate="tanh") if gelu else functional.silu(gate)
    out.copy_((activated * up).to(out.dtype))
    return _quantize(out, quantized)


def swiglu_backward(gate_up: Tensor, grad: Tensor, quantized: Quantized | None = None, *, gelu: bool = False) -> None:
    """Replace `gate_up` by its gradient, and `grad` [rows, width] by swiglu's output, which LoRA's A needs.

    `quantized` gets the gradient: [rows, 2 * width].
    """
    if gate_up.is_cuda and gelu:
        _triton().geglu_backward(gate_up, grad)
        return _quantize(gate_up, quantized)
    if gate_up.is_cuda:
        return _triton().swiglu_backward(gate_up, grad, quantized)
    gate, up = gate_up.float().clone().chunk(2, dim=-1)
    grad32 = grad.float().clone()  # float() of a float32 tensor is the tensor itself
    # both are the gate times a sigmoid, of the gate or of twice the tanh's argument
    inner = 2 * GELU_ROOT * (gate + GELU_CUBE * gate**3) if gelu else gate
    slope = 2 * GELU_ROOT * (1 + 3 * GELU_CUBE * gate**2) if gelu else 1.0
    sigmoid = torch.sigmoid(inner)
    activated = gate * sigmoid
    width = grad.shape[1]
    grad.copy_((activated * up).to(grad.dtype))
    gate_up[:, :width] = (grad32 * up * sigmoid * (1 + (gate - activated) * slope)).to(gate_up.dtype)
    gate_up[:, width:] = (grad32 * activated).to(gate_up.dtype)
    return _quantize(gate_up, quantized)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of each row, float32 [rows]. Overwrite the logits with the gradient of the sum."""
    if logits.is_cuda:
        return _triton().cross_entropy(logits, targets)
    logits32 = logits.float()
    losses = functional.cross_entropy(logits32, targets, reduction="none")
    logits32 = logits32.softmax(-1)
    logits32[torch.arange(len(targets)), targets] -= 1
    logits.copy_(logits32.to(logits.dtype))
    return losses

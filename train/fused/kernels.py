"""The memory-bound steps of a transformer layer, each one pass over its tensors: Triton on a GPU, torch elsewhere.

    rms_norm · rms_norm_backward · rotate · rotate_backward · swiglu · swiglu_backward · cross_entropy

Every function computes in float32 and rounds once at the end. Triton is imported only for CUDA tensors. Outputs may be
views with a row stride of their own: train/fused/model.py lays LoRA's inner activations beside them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@functools.cache
def _gpu() -> Any:
    from train.fused import kernels_triton

    return kernels_triton


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """out = weight * x / rms(x), row by row; returns 1/rms, float32 [rows].  x, out [rows, width]."""
    if x.is_cuda:
        return _gpu().rms_norm(x, weight, eps, out)
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1) + eps)
    out.copy_((wide * inverse[:, None]).to(x.dtype) * weight)
    return inverse


def rms_norm_again(x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """rms_norm's output from its saved 1/rms."""
    if x.is_cuda:
        return _gpu().rms_norm_again(x, weight, inverse)
    return (x.float() * inverse[:, None]).to(x.dtype) * weight


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, skip: Tensor | None, out: Tensor
) -> Tensor:
    """`out`: the gradient of the norm's input, plus `skip`, the gradient that went around the norm."""
    if x.is_cuda:
        return _gpu().rms_norm_backward(grad, x, weight, inverse, skip, out)
    scaled, unit = grad.float() * weight.float(), x.float() * inverse[:, None]
    found = inverse[:, None] * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))
    return out.copy_(found if skip is None else found + skip.float())


def rotate(
    qkv: Tensor,
    out: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    queries: int,
    keys: int,
    norms: tuple[Tensor, Tensor, float] | None = None,
) -> None:
    """Rotary embedding of the query and key heads of qkv [rows, heads, dim] into `out`, which may be qkv itself.

    Heads stand in the order queries, keys, values; values are left alone. cos, sin [positions, dim/2] float32.
    norms: (query weight, key weight, eps) where each head is normalised before it is rotated (Qwen3).
    """
    if qkv.is_cuda:
        return _gpu().rotate(qkv, out, cos, sin, positions, queries, keys, norms)
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


def rotate_backward(
    grad: Tensor,
    first_head: int,
    raw: Tensor | None,
    out: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    norm: tuple[Tensor, float] | None = None,
) -> None:
    """The gradient of rotated heads (grad [rows, heads, dim]) as that of their input, into heads first_head... of out.

    `raw` is what rotate read, [rows, all heads, dim], needed only with a norm.
    """
    if grad.is_cuda:
        return _gpu().rotate_backward(grad, first_head, raw, out, cos, sin, positions, norm)
    low, high = grad.float().chunk(2, dim=-1)
    c, s = cos[positions][:, None], sin[positions][:, None]
    back = torch.cat([low * c + high * s, high * c - low * s], dim=-1)
    heads = slice(first_head, first_head + grad.shape[1])
    if norm is not None:
        assert raw is not None
        x = raw[:, heads].float()
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm[1])
        unit, back = x * inverse, back * norm[0].float()
        back = inverse * (back - unit * (back * unit).mean(-1, keepdim=True))
    out[:, heads] = back.to(out.dtype)
    return None


def rotate_neighbours(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, back: bool = False) -> None:
    """GLM's rotary embedding in place, or that of a gradient `back`: x [rows, heads, dim], of whose first
    2 * cos.shape[1] elements each two neighbours turn together.

    Torch's own kernels on a GPU too: half of the queries and keys are a hundredth of a layer's memory traffic.
    """
    turned = x[..., : 2 * cos.shape[1]]
    first, second = turned.float().unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[positions][:, None], sin[positions][:, None]
    s = -s if back else s
    turned.copy_(torch.stack([first * c - second * s, second * c + first * s], dim=-1).flatten(-2))


def swiglu(both: Tensor, out: Tensor) -> None:
    """out = silu(gate) * up;  both [rows, 2 * width] holds gate and up side by side, out [rows, width]."""
    if both.is_cuda:
        return _gpu().swiglu(both, out)
    gate, up = both.float().chunk(2, dim=-1)
    out.copy_((functional.silu(gate) * up).to(out.dtype))
    return None


def swiglu_backward(both: Tensor, grad: Tensor) -> None:
    """In place: `both` becomes the gradient of gate and up, `grad` [rows, width] the product itself (for LoRA's A)."""
    if both.is_cuda:
        return _gpu().swiglu_backward(both, grad)
    gate, up = both.float().clone().chunk(2, dim=-1)
    wide = grad.float().clone()  # float() of a float32 tensor is the tensor itself
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    width = grad.shape[1]
    grad.copy_((silu * up).to(grad.dtype))
    both[:, :width] = (wide * up * sigmoid * (1 + gate - silu)).to(both.dtype)
    both[:, width:] = (wide * silu).to(both.dtype)
    return None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each row, float32 [rows]; the logits are overwritten with the gradient of their sum."""
    if logits.is_cuda:
        return _gpu().cross_entropy(logits, targets)
    wide = logits.float()
    losses = functional.cross_entropy(wide, targets, reduction="none")
    wide = wide.softmax(-1)
    wide[torch.arange(len(targets)), targets] -= 1
    logits.copy_(wide.to(logits.dtype))
    return losses

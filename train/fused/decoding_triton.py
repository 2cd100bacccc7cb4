"""Triton kernel of train/fused/decoding.py: attention of one new token per slot to the tokens before it."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

KEYS = 64
"""Keys that are read at a time."""
LEAST_ROWS = 16
"""The least rows of a matrix instruction."""


@triton.jit
def _attend(
    q, k, v, keys, values, lengths, out, q_row, k_row, v_row, out_row, slot_row, token_row, log2_scale, window,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A program has all query heads of one slot that share keys. Powers of two instead of e, as `log2_scale` says."""
    slot, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + slot)
    row, dim = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    is_dim = dim < DIM
    heads = ((kv_head * GROUP + row) * DIM)[:, None] + dim[None, :]
    mask = (row < GROUP)[:, None] & is_dim[None, :]
    query = tl.load(q + slot * q_row + heads, mask=mask, other=0.0)
    new_key = tl.load(k + slot * k_row + kv_head * DIM + dim, mask=is_dim, other=0.0)
    new_value = tl.load(v + slot * v_row + kv_head * DIM + dim, mask=is_dim, other=0.0)
    start_of_slot = slot * slot_row + kv_head * DIM
    tl.store(keys + start_of_slot + length * token_row + dim, new_key, mask=is_dim)
    tl.store(values + start_of_slot + length * token_row + dim, new_value, mask=is_dim)
    row_max = tl.sum(query.to(tl.float32) * new_key.to(tl.float32)[None, :], 1) * log2_scale
    row_sum = tl.full([ROWS], 1.0, tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32) + new_value.to(tl.float32)[None, :]
    first = tl.maximum(length - window + 1, 0)
    for start in range(first, length, KEYS):
        token = start + tl.arange(0, KEYS)
        at = start_of_slot + token[:, None] * token_row + dim[None, :]
        seen = (token < length)[:, None] & is_dim[None, :]
        key = tl.load(keys + at, mask=seen, other=0.0)
        value = tl.load(values + at, mask=seen, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * log2_scale
        scores = tl.where((token < length)[None, :], scores, -float("inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        probs = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(probs, 1)
        acc = tl.dot(probs.to(value.dtype), value, acc * rescale[:, None], input_precision="ieee")
        row_max = new_max
    tl.store(out + slot * out_row + heads, (acc / row_sum[:, None]).to(out.dtype.element_ty), mask=mask)


def attend_to_cache(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, out: Tensor, scale: float,
    window: int,
) -> None:  # fmt: skip
    slots, heads, dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    _attend[(slots, kv_heads)](
        q, k, v, keys, values, lengths, out, q.stride(0), k.stride(0), v.stride(0), out.stride(0),
        keys.stride(0), keys.stride(1), math.log2(math.e) * scale, window,
        GROUP=group, ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)), DIM=dim,
        WIDTH=max(LEAST_ROWS, triton.next_power_of_2(dim)), KEYS=KEYS, num_warps=4,
    )  # fmt: skip

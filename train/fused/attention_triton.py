"""Causal attention within short packed records: Triton kernels, one program per tile of a record.

On records of a few hundred tokens, flash attention loses time outside its arithmetic. It writes the gradients of keys
and values once per query head and sums them afterwards. It accumulates the gradients of queries in float32 with atomic
additions. It starts as many programs for each record as the longest record needs. These kernels differ:
  - a program processes a tile of tokens with all query heads that share its keys, so keys and values are read once for
    all of these heads, and their gradients are summed in registers;
  - the tiles are listed on the host, which knows the lengths (`PackedLayout` in attention.py), longest work first;
  - gradients are written where the next kernel reads them, without a copy, and deterministically (no atomics).
The backward pass has two kernels (queries; keys and values). Both recompute the probabilities.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64
"""Rows per query tile: tokens times the query heads that share a key head."""
KEYS = 64
"""Keys per key tile."""
FORWARD = {"KEYS": 32, "num_warps": 4, "num_stages": 3}
BACKWARD_QUERIES = {"KEYS": 32, "num_warps": 4, "num_stages": 2}
BACKWARD_KEYS = {"ROWS": 32, "num_warps": 4, "num_stages": 3}
"""Launch options per kernel, and the block size of its inner loop: tuned on an H100 (docs/performance.md)."""

Tiles = tuple[Tensor, Tensor]
"""int32 [tiles, 3] for queries and for keys: start of the record, its length, and the tile's first token within it."""


def tiles(lengths: tuple[int, ...], group: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Make `Tiles` on the host for records of these lengths, with `group` query heads per key head; most work first."""
    sizes = np.asarray(lengths, dtype=np.int64)
    queries, keys = _split(sizes, max(1, ROWS // group)), _split(sizes, KEYS)
    return queries[np.argsort(-queries[:, 2], kind="stable")], keys[np.argsort(keys[:, 2] - keys[:, 1], kind="stable")]


def _split(sizes: npt.NDArray[np.int64], tile_tokens: int) -> npt.NDArray[np.int32]:
    counts = -(-sizes // tile_tokens)
    record = np.repeat(np.arange(len(sizes)), counts)
    first_tokens = (np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)) * tile_tokens
    record_starts = np.cumsum(sizes) - sizes
    return np.stack([record_starts[record], sizes[record], first_tokens], axis=1).astype(np.int32)


@triton.jit
def _forward(
    q, k, v, out, logsumexp, tiles, q_row, k_row, v_row, out_row, log2_scale,
    GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """`log2_scale` includes log2(e): the kernel uses powers of two, and `logsumexp` is a base-2 logarithm too."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    record_start = tl.load(tiles + tile * 3).to(tl.int64)
    length = tl.load(tiles + tile * 3 + 1)
    first_token = tl.load(tiles + tile * 3 + 2)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    query_token = first_token + row // GROUP
    head = kv_head * GROUP + row % GROUP
    query_mask = (row < TOKENS * GROUP) & (query_token < length)
    query = tl.load(q + (record_start + query_token)[:, None] * q_row + (head * DIM)[:, None] + dim[None, :],
                    mask=query_mask[:, None], other=0.0)  # fmt: skip
    row_max = tl.full([ROWS], -float("inf"), tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, tl.minimum(first_token + TOKENS, length), KEYS):
        key_token = start + tl.arange(0, KEYS)
        key_mask = (key_token < length)[:, None]
        key_index = (record_start + key_token)[:, None]
        key = tl.load(k + key_index * k_row + kv_head * DIM + dim[None, :], mask=key_mask, other=0.0)
        value = tl.load(v + key_index * v_row + kv_head * DIM + dim[None, :], mask=key_mask, other=0.0)
        scores = tl.dot(query, tl.trans(key)) * log2_scale
        scores = tl.where(key_token[None, :] <= query_token[:, None], scores, -float("inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        probs = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(probs, 1)
        acc = tl.dot(probs.to(value.dtype), value, acc * rescale[:, None])
        row_max = new_max
    stat_offset = (record_start + query_token) * HEADS + head
    out_ptrs = out + (record_start + query_token)[:, None] * out_row + (head * DIM)[:, None] + dim[None, :]
    tl.store(out_ptrs, (acc / row_sum[:, None]).to(out.dtype.element_ty), mask=query_mask[:, None])
    tl.store(logsumexp + stat_offset, row_max + tl.log2(row_sum), mask=query_mask)


@triton.jit
def _backward_queries(
    q, k, v, out, logsumexp, delta, grad, dq, tiles, q_row, k_row, v_row, out_row, dq_row, log2_scale, softmax_scale,
    GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """Gradients of queries, and `delta`: the row sum of output times its gradient, which the other kernel reads."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    record_start = tl.load(tiles + tile * 3).to(tl.int64)
    length = tl.load(tiles + tile * 3 + 1)
    first_token = tl.load(tiles + tile * 3 + 2)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    query_token = first_token + row // GROUP
    head = kv_head * GROUP + row % GROUP
    query_mask = (row < TOKENS * GROUP) & (query_token < length)
    stat_offset = (record_start + query_token) * HEADS + head
    query = tl.load(q + (record_start + query_token)[:, None] * q_row + (head * DIM)[:, None] + dim[None, :],
                    mask=query_mask[:, None], other=0.0)  # fmt: skip
    grad_out = tl.load(grad + stat_offset[:, None] * DIM + dim[None, :], mask=query_mask[:, None], other=0.0)
    output = tl.load(out + (record_start + query_token)[:, None] * out_row + (head * DIM)[:, None] + dim[None, :],
                     mask=query_mask[:, None], other=0.0)  # fmt: skip
    row_delta = tl.sum(grad_out.to(tl.float32) * output.to(tl.float32), 1)
    tl.store(delta + stat_offset, row_delta, mask=query_mask)
    log_sum = tl.load(logsumexp + stat_offset, mask=query_mask, other=0.0)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, tl.minimum(first_token + TOKENS, length), KEYS):
        key_token = start + tl.arange(0, KEYS)
        key_mask = (key_token < length)[:, None]
        key_index = (record_start + key_token)[:, None]
        key = tl.load(k + key_index * k_row + kv_head * DIM + dim[None, :], mask=key_mask, other=0.0)
        value = tl.load(v + key_index * v_row + kv_head * DIM + dim[None, :], mask=key_mask, other=0.0)
        probs = tl.exp2(tl.dot(query, tl.trans(key)) * log2_scale - log_sum[:, None])
        probs = tl.where((key_token[None, :] <= query_token[:, None]) & query_mask[:, None], probs, 0.0)
        grad_scores = probs * (tl.dot(grad_out, tl.trans(value)) - row_delta[:, None])
        acc = tl.dot(grad_scores.to(key.dtype), key, acc)
    dq_ptrs = dq + (record_start + query_token)[:, None] * dq_row + (head * DIM)[:, None] + dim[None, :]
    tl.store(dq_ptrs, (acc * softmax_scale).to(dq.dtype.element_ty), mask=query_mask[:, None])


@triton.jit
def _backward_keys(
    q, k, v, logsumexp, delta, grad, dk, dv, tiles, q_row, k_row, v_row, dk_row, dv_row, log2_scale, softmax_scale,
    GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, summed over the query heads that share them."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    record_start = tl.load(tiles + tile * 3).to(tl.int64)
    length = tl.load(tiles + tile * 3 + 1)
    first_token = tl.load(tiles + tile * 3 + 2)
    key_token = first_token + tl.arange(0, KEYS)
    dim = tl.arange(0, DIM)
    key_mask = (key_token < length)[:, None]
    key_index = (record_start + key_token)[:, None]
    key = tl.load(k + key_index * k_row + kv_head * DIM + dim[None, :], mask=key_mask, other=0.0)
    value = tl.load(v + key_index * v_row + kv_head * DIM + dim[None, :], mask=key_mask, other=0.0)
    dk_acc = tl.zeros([KEYS, DIM], tl.float32)
    dv_acc = tl.zeros([KEYS, DIM], tl.float32)
    row = tl.arange(0, ROWS)
    head = kv_head * GROUP + row % GROUP
    for start in range(first_token, length, TOKENS):
        query_token = start + row // GROUP
        query_mask = (row < TOKENS * GROUP) & (query_token < length)
        stat_offset = (record_start + query_token) * HEADS + head
        query = tl.load(q + (record_start + query_token)[:, None] * q_row + (head * DIM)[:, None] + dim[None, :],
                        mask=query_mask[:, None], other=0.0)  # fmt: skip
        grad_out = tl.load(grad + stat_offset[:, None] * DIM + dim[None, :], mask=query_mask[:, None], other=0.0)
        log_sum = tl.load(logsumexp + stat_offset, mask=query_mask, other=0.0)
        row_delta = tl.load(delta + stat_offset, mask=query_mask, other=0.0)
        probs = tl.exp2(tl.dot(key, tl.trans(query)) * log2_scale - log_sum[None, :])
        probs = tl.where((key_token[:, None] <= query_token[None, :]) & query_mask[None, :], probs, 0.0)
        dv_acc = tl.dot(probs.to(grad_out.dtype), grad_out, dv_acc)
        grad_scores = probs * (tl.dot(value, tl.trans(grad_out)) - row_delta[None, :])
        dk_acc = tl.dot(grad_scores.to(query.dtype), query, dk_acc)
    tl.store(dk + key_index * dk_row + kv_head * DIM + dim[None, :], (dk_acc * softmax_scale).to(dk.dtype.element_ty),
             mask=key_mask)  # fmt: skip
    tl.store(dv + key_index * dv_row + kv_head * DIM + dim[None, :], dv_acc.to(dv.dtype.element_ty), mask=key_mask)


_LOG2_E = 1.4426950408889634


def forward(query: Tensor, key: Tensor, value: Tensor, output: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Write `output` and return the log-sum-exp [tokens, heads]; `scale` is the factor of the scores.

    query, output [tokens, heads, dim]; key, value [tokens, key heads, dim]; rows may be strided.
    """
    tokens, heads, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    logsumexp = torch.empty(tokens, heads, dtype=torch.float32, device=query.device)
    _forward[(len(tiles[0]), kv_heads)](
        query, key, value, output, logsumexp, tiles[0], query.stride(0), key.stride(0), value.stride(0),
        output.stride(0), scale * _LOG2_E, GROUP=group, HEADS=heads, DIM=dim, TOKENS=ROWS // group, ROWS=ROWS,
        **FORWARD,
    )  # fmt: skip
    return logsumexp


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, logsumexp: Tensor, tiles: Tiles,
    out: tuple[Tensor, Tensor, Tensor], scale: float,
) -> None:  # fmt: skip
    """Write the gradients of query, key and value to `out`, whose rows may be strided.

    grad [tokens, heads, dim] must be contiguous.
    """
    _, heads, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    dq, dk, dv = out
    delta = torch.empty_like(logsumexp)
    rows = query.stride(0), key.stride(0), value.stride(0)
    scales = scale * _LOG2_E, scale
    _backward_queries[(len(tiles[0]), kv_heads)](
        query, key, value, output, logsumexp, delta, grad, dq, tiles[0], *rows, output.stride(0), dq.stride(0), *scales,
        GROUP=group, HEADS=heads, DIM=dim, TOKENS=ROWS // group, ROWS=ROWS, **BACKWARD_QUERIES,
    )  # fmt: skip
    _backward_keys[(len(tiles[1]), kv_heads)](
        query, key, value, logsumexp, delta, grad, dk, dv, tiles[1], *rows, dk.stride(0), dv.stride(0), *scales,
        GROUP=group, HEADS=heads, DIM=dim, TOKENS=BACKWARD_KEYS["ROWS"] // group, KEYS=KEYS, **BACKWARD_KEYS,
    )  # fmt: skip

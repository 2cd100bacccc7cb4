"""Causal attention inside short records that lie end to end: Triton kernels, one program a tile of one record.

What flash attention loses on records of a few hundred tokens is not arithmetic: it writes the gradients of keys and
values once a query head and sums them afterwards, collects that of the queries in float32 by atomic additions, and
starts programs for the longest record's tiles in every record. Here
  - a program takes a tile of tokens with all query heads that share its keys, so keys and values are read once for
    them, and their gradients are summed in registers;
  - the tiles are listed on the host (train/attention.Layout knows the lengths), the longest work first;
  - gradients go where the next kernel wants them: no further copy, and the same result every time (no atomics).
The backward pass is two kernels (queries; keys and values), each of which computes the probabilities again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64
"""Rows of a tile of queries: tokens times the query heads that share a key head."""
KEYS = 64
"""Keys of a tile of keys."""
FORWARD = {"KEYS": 32, "num_warps": 4, "num_stages": 3}
OF_QUERIES = {"KEYS": 32, "num_warps": 4, "num_stages": 2}
OF_KEYS = {"ROWS": 32, "num_warps": 4, "num_stages": 3}
"""Steps along the other side of a tile, and how a program runs: timed on an H100 (docs/performance.md)."""

Tiles = tuple[Tensor, Tensor]
"""int32 [tiles, 3] for queries and for keys: where the record begins, its length, the tile's first token in it."""


def tiles(lengths: tuple[int, ...], group: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """`Tiles` on the host, for records of these lengths and `group` query heads a key head; most work first."""
    sizes = np.asarray(lengths, dtype=np.int64)
    queries, keys = _cut(sizes, max(1, ROWS // group)), _cut(sizes, KEYS)
    return queries[np.argsort(-queries[:, 2], kind="stable")], keys[np.argsort(keys[:, 2] - keys[:, 1], kind="stable")]


def _cut(sizes: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.int32]:
    counts = -(-sizes // step)
    record = np.repeat(np.arange(len(sizes)), counts)
    firsts = (np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)) * step
    begins = np.cumsum(sizes) - sizes
    return np.stack([begins[record], sizes[record], firsts], axis=1).astype(np.int32)


@triton.jit
def _forward(
    q, k, v, out, logsumexp, tiles, q_row, k_row, v_row, out_row, scale,
    GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """`scale` holds log2(e): powers of two inside, and so is the log-sum-exp that is kept."""
    tile, shared = tl.program_id(0), tl.program_id(1)
    begin = tl.load(tiles + tile * 3).to(tl.int64)
    length = tl.load(tiles + tile * 3 + 1)
    first = tl.load(tiles + tile * 3 + 2)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    token = first + row // GROUP
    head = shared * GROUP + row % GROUP
    inside = (row < TOKENS * GROUP) & (token < length)
    query = tl.load(q + (begin + token)[:, None] * q_row + (head * DIM)[:, None] + dim[None, :], mask=inside[:, None],
                    other=0.0)  # fmt: skip
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, tl.minimum(first + TOKENS, length), KEYS):
        at = start + tl.arange(0, KEYS)
        there = (at < length)[:, None]
        place = (begin + at)[:, None]
        key = tl.load(k + place * k_row + shared * DIM + dim[None, :], mask=there, other=0.0)
        value = tl.load(v + place * v_row + shared * DIM + dim[None, :], mask=there, other=0.0)
        score = tl.dot(query, tl.trans(key)) * scale
        score = tl.where(at[None, :] <= token[:, None], score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None])
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(share, 1)
        sums = tl.dot(share.to(value.dtype), value, sums * fade[:, None])
        top = higher
    mark = (begin + token) * HEADS + head
    place = out + (begin + token)[:, None] * out_row + (head * DIM)[:, None] + dim[None, :]
    tl.store(place, (sums / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(logsumexp + mark, top + tl.log2(total), mask=inside)


@triton.jit
def _of_queries(
    q, k, v, out, logsumexp, delta, grad, dq, tiles, q_row, k_row, v_row, out_row, dq_row, scale, plain_scale,
    GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """The gradient of the queries; and delta, the sum of output times gradient, which the other kernel reads."""
    tile, shared = tl.program_id(0), tl.program_id(1)
    begin = tl.load(tiles + tile * 3).to(tl.int64)
    length = tl.load(tiles + tile * 3 + 1)
    first = tl.load(tiles + tile * 3 + 2)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    token = first + row // GROUP
    head = shared * GROUP + row % GROUP
    inside = (row < TOKENS * GROUP) & (token < length)
    mark = (begin + token) * HEADS + head
    query = tl.load(q + (begin + token)[:, None] * q_row + (head * DIM)[:, None] + dim[None, :], mask=inside[:, None],
                    other=0.0)  # fmt: skip
    coming = tl.load(grad + mark[:, None] * DIM + dim[None, :], mask=inside[:, None], other=0.0)
    result = tl.load(out + (begin + token)[:, None] * out_row + (head * DIM)[:, None] + dim[None, :],
                     mask=inside[:, None], other=0.0)  # fmt: skip
    product = tl.sum(coming.to(tl.float32) * result.to(tl.float32), 1)
    tl.store(delta + mark, product, mask=inside)
    log_sum = tl.load(logsumexp + mark, mask=inside, other=0.0)
    sums = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, tl.minimum(first + TOKENS, length), KEYS):
        at = start + tl.arange(0, KEYS)
        there = (at < length)[:, None]
        place = (begin + at)[:, None]
        key = tl.load(k + place * k_row + shared * DIM + dim[None, :], mask=there, other=0.0)
        value = tl.load(v + place * v_row + shared * DIM + dim[None, :], mask=there, other=0.0)
        share = tl.exp2(tl.dot(query, tl.trans(key)) * scale - log_sum[:, None])
        share = tl.where((at[None, :] <= token[:, None]) & inside[:, None], share, 0.0)
        change = share * (tl.dot(coming, tl.trans(value)) - product[:, None])
        sums = tl.dot(change.to(key.dtype), key, sums)
    place = dq + (begin + token)[:, None] * dq_row + (head * DIM)[:, None] + dim[None, :]
    tl.store(place, (sums * plain_scale).to(dq.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _of_keys(
    q, k, v, logsumexp, delta, grad, dk, dv, tiles, q_row, k_row, v_row, dk_row, dv_row, scale, plain_scale,
    GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """The gradients of keys and values, summed over the query heads that share them."""
    tile, shared = tl.program_id(0), tl.program_id(1)
    begin = tl.load(tiles + tile * 3).to(tl.int64)
    length = tl.load(tiles + tile * 3 + 1)
    first = tl.load(tiles + tile * 3 + 2)
    at = first + tl.arange(0, KEYS)
    dim = tl.arange(0, DIM)
    there = (at < length)[:, None]
    place = (begin + at)[:, None]
    key = tl.load(k + place * k_row + shared * DIM + dim[None, :], mask=there, other=0.0)
    value = tl.load(v + place * v_row + shared * DIM + dim[None, :], mask=there, other=0.0)
    of_key = tl.zeros([KEYS, DIM], tl.float32)
    of_value = tl.zeros([KEYS, DIM], tl.float32)
    row = tl.arange(0, ROWS)
    head = shared * GROUP + row % GROUP
    for start in range(first, length, TOKENS):
        token = start + row // GROUP
        inside = (row < TOKENS * GROUP) & (token < length)
        mark = (begin + token) * HEADS + head
        query = tl.load(q + (begin + token)[:, None] * q_row + (head * DIM)[:, None] + dim[None, :],
                        mask=inside[:, None], other=0.0)  # fmt: skip
        coming = tl.load(grad + mark[:, None] * DIM + dim[None, :], mask=inside[:, None], other=0.0)
        log_sum = tl.load(logsumexp + mark, mask=inside, other=0.0)
        product = tl.load(delta + mark, mask=inside, other=0.0)
        share = tl.exp2(tl.dot(key, tl.trans(query)) * scale - log_sum[None, :])
        share = tl.where((at[:, None] <= token[None, :]) & inside[None, :], share, 0.0)
        of_value = tl.dot(share.to(coming.dtype), coming, of_value)
        change = share * (tl.dot(value, tl.trans(coming)) - product[None, :])
        of_key = tl.dot(change.to(query.dtype), query, of_key)
    tl.store(dk + place * dk_row + shared * DIM + dim[None, :], (of_key * plain_scale).to(dk.dtype.element_ty),
             mask=there)  # fmt: skip
    tl.store(dv + place * dv_row + shared * DIM + dim[None, :], of_value.to(dv.dtype.element_ty), mask=there)


_LOG2_E = 1.4426950408889634


def forward(query: Tensor, key: Tensor, value: Tensor, output: Tensor, tiles: Tiles) -> Tensor:
    """query and `output` [tokens, heads, dim], key and value [tokens, key heads, dim], strided rows -> log-sum-exp."""
    tokens, heads, dim = query.shape
    shared = key.shape[1]
    group = heads // shared
    logsumexp = torch.empty(tokens, heads, dtype=torch.float32, device=query.device)
    _forward[(len(tiles[0]), shared)](
        query, key, value, output, logsumexp, tiles[0], query.stride(0), key.stride(0), value.stride(0),
        output.stride(0), dim**-0.5 * _LOG2_E, GROUP=group, HEADS=heads, DIM=dim, TOKENS=ROWS // group, ROWS=ROWS,
        **FORWARD,
    )  # fmt: skip
    return logsumexp


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, logsumexp: Tensor, tiles: Tiles,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """grad [tokens, heads, dim], contiguous -> the gradients of query, key and value, in `into` (strided rows)."""
    _, heads, dim = query.shape
    shared = key.shape[1]
    group = heads // shared
    dq, dk, dv = into
    delta = torch.empty_like(logsumexp)
    rows = query.stride(0), key.stride(0), value.stride(0)
    scales = dim**-0.5 * _LOG2_E, dim**-0.5
    _of_queries[(len(tiles[0]), shared)](
        query, key, value, output, logsumexp, delta, grad, dq, tiles[0], *rows, output.stride(0), dq.stride(0), *scales,
        GROUP=group, HEADS=heads, DIM=dim, TOKENS=ROWS // group, ROWS=ROWS, **OF_QUERIES,
    )  # fmt: skip
    _of_keys[(len(tiles[1]), shared)](
        query, key, value, logsumexp, delta, grad, dk, dv, tiles[1], *rows, dk.stride(0), dv.stride(0), *scales,
        GROUP=group, HEADS=heads, DIM=dim, TOKENS=OF_KEYS["ROWS"] // group, KEYS=KEYS, **OF_KEYS,
    )  # fmt: skip

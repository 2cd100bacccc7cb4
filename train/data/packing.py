"""Packed batches: records end to end in one row, dealt by tokens so that all rows of a step are alike.

    deal(...)      which records of an optimizer step lie in which row of which rank
    collate(...)   a row as tensors, with what the fast path wants to know of it on the host (train/attention.Layout)

A micro batch of `micro_batch_size` records may hold micro_batch_size * max_length tokens, which is what the planner
counted; records are mostly far shorter, so packing fills that many tokens instead of that many records. Fewer, fuller
passes see the same records in the same optimizer step, and the loss is averaged over the step's tokens either way.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.schedule import Indices
from train.data.tokens import IGNORED, Tokens

MULTIPLE = 128
"""Rows are padded to a multiple of this many tokens (a record of its own at the end): kernels like whole tiles."""


def deal(records: Indices, lengths: npt.ArrayLike, *, world_size: int, capacity: int) -> list[list[Indices]]:
    """`deal(...)[rank][i]`: the records of a rank's i-th row, none longer than `capacity` tokens.

    Every rank gets equally many rows, as collectives inside the model (ZeRO-3) demand, as few as can be, and rows of
    nearly equal length: the longest record goes to the row that has least so far.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) and int(sizes.max()) > capacity:
        raise ValueError(f"a record of {int(sizes.max())} tokens does not fit a row of {capacity}")
    if len(records) < world_size:
        raise ValueError(f"{len(records)} records cannot be dealt to {world_size} ranks")
    rows = max(1, -(-int(sizes.sum()) // (capacity * world_size)))
    while True:
        filled = _fill(sizes, rows * world_size)
        if max(int(sizes[row].sum()) for row in filled) <= capacity:
            break
        rows += 1
    # rows of like length stand at the same turn of all ranks, the fullest first: memory runs out at once or never
    filled.sort(key=lambda row: -int(sizes[row].sum()))
    return [[records[row] for row in filled[rank::world_size]] for rank in range(world_size)]


def _fill(sizes: npt.NDArray[np.int64], count: int) -> list[list[int]]:
    """Positions in `count` rows; no row stays empty as long as there are records for it."""
    heap = [(0, 0, row) for row in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for place in np.argsort(-sizes, kind="stable").tolist():
        total, members, row = heapq.heappop(heap)
        rows[row].append(place)
        heapq.heappush(heap, (total + int(sizes[place]), members + 1, row))
    return rows


def collate(data: Tokens, indices: Sequence[int], *, pad: int, pin: bool = False) -> dict[str, Any]:
    """One row on the CPU: input_ids, labels, position_ids [1, tokens], places [labelled], lengths (of the records)."""
    rows = [data.sequence(int(index)) for index in indices]
    lengths = [len(tokens) for tokens, _ in rows]
    padding = -sum(lengths) % MULTIPLE
    total = sum(lengths) + padding
    ids = np.full((1, total), pad, dtype=np.int64)
    labels = np.full((1, total), IGNORED, dtype=np.int64)
    positions = np.zeros((1, total), dtype=np.int64)
    start = 0
    for tokens, labelled in rows:
        end = start + len(tokens)
        ids[0, start:end] = tokens
        labels[0, start : end - 1] = np.where(labelled[1:], tokens[1:], IGNORED)
        positions[0, start:end] = np.arange(len(tokens))
        start = end
    positions[0, start:] = np.arange(padding)
    return {
        **_tensors(pin, input_ids=ids, labels=labels, position_ids=positions),
        **_tensors(pin, places=np.flatnonzero(labels[0] != IGNORED)),
        "lengths": tuple(lengths) + ((padding,) if padding else ()),
    }


def _tensors(pin: bool, **arrays: npt.NDArray[np.int64]) -> dict[str, Any]:
    import torch

    made = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: tensor.pin_memory() for name, tensor in made.items()} if pin else made

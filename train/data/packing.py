"""Packed batches: records end to end in one row, dealt by tokens so that all rows of a step have similar lengths.

    deal(...)      which records of an optimizer step go to which row of which rank
    collate(...)   a row as tensors, with the facts that the fused layers need on the host (train/fused/attention.py)

The planner counts a micro batch as micro_batch_size * max_length tokens. Most records are far shorter, so packing fills
that many tokens instead of that many records. Fewer, fuller passes see the same records in the same optimizer step, and
the loss is averaged over the step's tokens either way.
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
"""Rows are padded to a multiple of this many tokens, because kernels work on whole tiles. The padding is one record."""


def deal(records: Indices, lengths: npt.ArrayLike, *, world_size: int, capacity: int) -> list[list[Indices]]:
    """`deal(...)[rank][i]`: the records of a rank's i-th row, of at most `capacity` tokens.

    Every rank gets the same number of rows, because of collectives inside the model (ZeRO-3), and as few as possible.
    Rows have nearly equal lengths: the longest record goes to the row with the fewest tokens so far.
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
    # Ranks get rows of similar length at the same time, the fullest first: memory runs out in the first step or never.
    filled.sort(key=lambda row: -int(sizes[row].sum()))
    return [[records[row] for row in filled[rank::world_size]] for rank in range(world_size)]


def _fill(sizes: npt.NDArray[np.int64], count: int) -> list[list[int]]:
    """Deal positions to `count` rows; no row stays empty while there are records for it."""
    heap = [(0, 0, row) for row in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for place in np.argsort(-sizes, kind="stable").tolist():
        total, members, row = heapq.heappop(heap)
        rows[row].append(place)
        heapq.heappush(heap, (total + int(sizes[place]), members + 1, row))
    return rows


def collate(data: Tokens, indices: Sequence[int], *, pad: int, pin: bool = False) -> dict[str, Any]:
    """One row on the CPU: input_ids, labels, position_ids [1, tokens], label_positions [labels], record lengths."""
    arrays, lengths = lay_out(data, indices, pad=pad, multiple=MULTIPLE)
    positions = np.flatnonzero(arrays["labels"][0] != IGNORED)
    return {**_tensors(pin, **arrays, label_positions=positions), "lengths": lengths}


def lay_out(
    data: Tokens, indices: Sequence[int], *, pad: int, multiple: int
) -> tuple[dict[str, npt.NDArray[np.int64]], tuple[int, ...]]:
    """Pack records into a row: (input_ids, labels and position_ids [1, tokens], tokens per record).

    Padding to `multiple` is one more record. Positions restart at every record.
    """
    rows = [data.sequence(int(index))[0] for index in indices]
    lengths = list(map(len, rows))
    padding = -sum(lengths) % multiple
    total = sum(lengths) + padding
    ids = np.full((1, total), pad, dtype=np.int64)
    labels = np.full((1, total), IGNORED, dtype=np.int64)
    positions = np.zeros((1, total), dtype=np.int64)
    start = 0
    for index, tokens in zip(indices, rows, strict=True):
        end = start + len(tokens)
        ids[0, start:end] = tokens
        labels[0, start : end - 1] = data.targets(int(index))
        positions[0, start:end] = np.arange(len(tokens))
        start = end
    positions[0, start:] = np.arange(padding)
    arrays = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return arrays, (*lengths, *([padding] if padding else []))


def _tensors(pin: bool, **arrays: npt.NDArray[np.int64]) -> dict[str, Any]:
    import torch

    made = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: tensor.pin_memory() for name, tensor in made.items()} if pin else made

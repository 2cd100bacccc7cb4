"""Build micro batches as tensors: sequences padded to the right, or packed into one row.

Right padding needs no attention mask under a causal mask: no token sees what is behind it. A packed row restarts its
positions at every record, and transformers builds a mask from them that keeps records apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from train.data import packing
from train.data.tokens import IGNORED, Tokens

Batch = dict[str, torch.Tensor]


def collate(data: Tokens, indices: Sequence[int], *, pad: int, multiple: int, device: str) -> Batch:
    """input_ids and labels [rows, length], length the longest record's rounded up to `multiple`."""
    rows = [data.sequence(int(index))[0] for index in indices]
    length = -(-max(map(len, rows)) // multiple) * multiple
    ids = np.full((len(rows), length), pad, dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for row, (index, tokens) in enumerate(zip(indices, rows, strict=True)):
        ids[row, : len(tokens)] = tokens
        labels[row, : len(tokens) - 1] = data.targets(int(index))
    return _tensors(device, input_ids=ids, labels=labels)


def pack(data: Tokens, indices: Sequence[int], *, pad: int, multiple: int, device: str) -> Batch:
    """input_ids, labels and position_ids [1, total], as packing.lay_out makes them."""
    return _tensors(device, **packing.lay_out(data, indices, pad=pad, multiple=multiple)[0])


def real_tokens(batch: Batch, lengths: Sequence[int]) -> torch.Tensor:
    """1 for the tokens of records of these lengths, 0 for padding: as input_ids of a batch of either form."""
    ids = batch["input_ids"]
    ends = [sum(lengths)] if "position_ids" in batch else list(lengths)
    return (torch.arange(ids.shape[1])[None] < torch.tensor(ends)[:, None]).long().to(ids.device, non_blocking=True)


COLLATORS = {"none": collate, "bucket": collate, "pack": pack}
"""By `train.packing`."""


def _tensors(device: str, **arrays: np.ndarray) -> Batch:
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}

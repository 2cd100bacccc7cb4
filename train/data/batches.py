"""Build micro batches as tensors: sequences padded to the right, or packed into one row.

Right padding needs no attention mask under a causal mask: no token sees what is behind it. A packed row restarts its
positions at every record, and transformers builds a mask from them that keeps records apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from train.data.tokens import IGNORED, Tokens

Batch = dict[str, torch.Tensor]


def collate(data: Tokens, indices: Sequence[int], *, pad: int, multiple: int, device: str) -> Batch:
    """input_ids and labels [rows, length], length the longest record's rounded up to `multiple`."""
    rows = [data.sequence(int(index)) for index in indices]
    length = -(-max(len(tokens) for tokens, _ in rows) // multiple) * multiple
    ids = np.full((len(rows), length), pad, dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for row, (tokens, labelled) in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        labels[row, : len(tokens) - 1] = _targets(tokens, labelled)
    return _tensors(device, input_ids=ids, labels=labels)


def pack(data: Tokens, indices: Sequence[int], *, pad: int, multiple: int, device: str) -> Batch:
    """input_ids, labels and position_ids [1, total]: records end to end; the padding is a record of its own."""
    rows = [data.sequence(int(index)) for index in indices]
    total = sum(len(tokens) for tokens, _ in rows)
    length = -(-total // multiple) * multiple
    ids = np.full((1, length), pad, dtype=np.int64)
    labels = np.full((1, length), IGNORED, dtype=np.int64)
    positions = np.zeros((1, length), dtype=np.int64)
    start = 0
    for tokens, labelled in rows:
        end = start + len(tokens)
        ids[0, start:end] = tokens
        labels[0, start : end - 1] = _targets(tokens, labelled)
        positions[0, start:end] = np.arange(len(tokens))
        start = end
    positions[0, total:] = np.arange(length - total)
    return _tensors(device, input_ids=ids, labels=labels, position_ids=positions)


COLLATORS = {"none": collate, "bucket": collate, "pack": pack}
"""By `train.packing`."""


def _targets(tokens: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """The target of each token but the last: the next token if it carries loss."""
    return np.where(labelled[1:], tokens[1:], IGNORED)


def _tensors(device: str, **arrays: np.ndarray) -> Batch:
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}

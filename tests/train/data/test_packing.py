"""Rows of a step: every record once, no row over its capacity, all rows alike; and what a row's tensors hold."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")

from train.data import packing  # noqa: E402
from train.data.tokens import Tokens  # noqa: E402
from train.fused import inputs  # noqa: E402


def lengths_of(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(np.log(150), 0.55, count), 24, 512).astype(np.int64)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("capacity", [512, 2048, 16384])
def test_every_record_is_in_one_row_and_no_row_is_too_long(world_size: int, capacity: int) -> None:
    lengths = lengths_of(96)
    records = np.arange(96) * 7
    shares = packing.deal(records, lengths, world_size=world_size, capacity=capacity)
    assert len({len(rows) for rows in shares}) == 1
    seen = np.concatenate([row for rows in shares for row in rows])
    assert sorted(seen.tolist()) == records.tolist()
    sizes = dict(zip(records.tolist(), lengths.tolist(), strict=True))
    assert max(sum(sizes[r] for r in row.tolist()) for rows in shares for row in rows) <= capacity
    assert all(len(row) for rows in shares for row in rows)


def test_rows_of_a_step_are_nearly_equal() -> None:
    lengths = lengths_of(96)
    (rows,) = packing.deal(np.arange(96), lengths, world_size=1, capacity=8192)
    totals = [int(lengths[row].sum()) for row in rows]
    assert len(rows) == -(-int(lengths.sum()) // 8192)
    assert max(totals) - min(totals) < 0.02 * max(totals)


def test_the_same_records_train_on_any_number_of_ranks() -> None:
    lengths, records = lengths_of(32), np.arange(32)
    flat = [
        sorted(
            np.concatenate([r for rows in packing.deal(records, lengths, world_size=w, capacity=4096) for r in rows])
        )
        for w in (1, 2, 4)
    ]
    assert flat[0] == flat[1] == flat[2]


def test_a_record_that_fits_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        packing.deal(np.arange(2), [100, 700], world_size=1, capacity=512)
    with pytest.raises(ValueError, match="cannot be dealt"):
        packing.deal(np.arange(2), [10, 10], world_size=4, capacity=512)


def tokens_of(lengths: list[int]) -> Tokens:
    total = sum(lengths)
    labelled = np.ones(total, dtype=np.bool_)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labelled[offsets[:-1]] = False
    labelled[offsets[1] : offsets[1] + 3] = False
    return Tokens(np.arange(10, 10 + total, dtype=np.int32), labelled, offsets, np.arange(len(lengths)))


def test_a_row_holds_its_records_end_to_end_and_predicts_only_inside_each() -> None:
    data = tokens_of([5, 7, 4])
    row = packing.collate(data, [2, 1], pad=3)
    ids, labels, positions = row["input_ids"][0], row["labels"][0], row["position_ids"][0]
    assert len(ids) == packing.MULTIPLE
    assert ids[:4].tolist() == data.sequence(2)[0].tolist()
    assert positions[:11].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]
    assert labels[3] == -100  # a record's end predicts nothing of the next one
    assert labels[:3].tolist() == ids[1:4].tolist()
    assert labels[4:6].tolist() == [-100, -100]
    assert labels[6:10].tolist() == ids[7:11].tolist()
    assert (labels[10:] == -100).all()
    assert row["lengths"] == (4, 7, packing.MULTIPLE - 11)
    assert row["label_positions"].tolist() == torch.nonzero(labels != -100).flatten().tolist()
    assert int((labels != -100).sum()) == int(data.loss_tokens[[1, 2]].sum())


def test_the_layout_of_a_row_says_where_its_records_begin() -> None:
    moved = inputs.to_device(packing.collate(tokens_of([5, 7]), [0, 1], pad=0), "cpu")
    assert moved["layout"].cu_seqlens.tolist() == [0, 5, 12, packing.MULTIPLE]
    assert moved["layout"].longest == packing.MULTIPLE - 12

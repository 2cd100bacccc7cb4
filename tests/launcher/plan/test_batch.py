from __future__ import annotations

import pytest

from launcher.errors import BatchError
from launcher.plan.batch import batches_of, divisors


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("largest", [1, 2, 5, 8, 100])
def test_the_product_is_always_the_global_batch(world, largest):
    for share in range(1, 40):
        for batch in batches_of(share * world, "auto", world, largest):
            product = batch.micro_batch_size * batch.gradient_accumulation_steps * batch.world_size
            assert product == share * world
            assert batch.micro_batch_size <= largest


def test_the_largest_micro_batch_comes_last():
    assert [batch.micro_batch_size for batch in batches_of(24, "auto", 2, 8)] == [1, 2, 3, 4, 6]


def test_a_batch_that_the_ranks_cannot_share_names_the_nearest_that_they_can():
    with pytest.raises(BatchError) as caught:
        batches_of(64, "auto", 6, 8)
    assert "60 and 66" in str(caught.value.hint)


def test_a_micro_batch_that_does_not_divide_names_sizes_that_do():
    with pytest.raises(BatchError) as caught:
        batches_of(64, 3, 2, 8)
    assert "60 and 66" in str(caught.value.hint)
    assert "1, 2, 4, 8, 16, 32" in str(caught.value.hint)


def test_more_ranks_than_records_name_the_smallest_batch():
    with pytest.raises(BatchError) as caught:
        batches_of(4, "auto", 8, 8)
    assert caught.value.hint == "nearest sizes that can: 8"


def test_a_huge_batch_is_answered_at_once():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(9) == [1, 3, 9]
    with pytest.raises(BatchError) as caught:
        batches_of(10**11, 7, 1, 8)  # not by trying every size: that took an hour
    assert "a micro_batch_size of 1, 2, 4, 5" in str(caught.value.hint)

"""ZeRO-3 of the fused layers: weights shared by ranks compute what whole ones do."""

from __future__ import annotations

import pytest

from tests.beds.ranks import Ranks

pytestmark = pytest.mark.train
pytest.importorskip("torch")


def test_shared_weights_give_the_losses_gradients_and_answers_of_whole_ones() -> None:
    """Five layers through two buffers, forward, backward and for generation; three ranks do not divide a layer.
    Shared by all ranks, and by those of each host.
    """
    ranks = Ranks(3, ["-m", "tests.beds.sharded_ranks"])
    assert ranks.wait(180) == [0, 0, 0], ranks.output
    assert all("equal" in output for output in ranks.output)

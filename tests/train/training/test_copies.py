"""Checkpoints are also kept on a host that does not see those of rank 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.beds.ranks import Ranks

pytestmark = pytest.mark.train
pytest.importorskip("torch")


def test_a_host_apart_keeps_the_newest_checkpoints_and_one_that_cannot_is_told(tmp_path: Path) -> None:
    """Three ranks on three nodes: shared and own run directories, numbers of copies, a host that cannot write."""
    ranks = Ranks(3, ["-m", "tests.beds.copying_ranks", str(tmp_path)])
    assert ranks.wait(300) == [0, 0, 0], ranks.output
    assert all("right" in output for output in ranks.output)

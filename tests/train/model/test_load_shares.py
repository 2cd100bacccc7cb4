"""Under ZeRO-3, each rank reads its share of a model's files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.beds.ranks import Ranks

pytestmark = pytest.mark.train


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed here")
def test_ranks_read_the_weights_that_transformers_would_send_them(tmp_path: Path) -> None:
    """Three ranks, which do not divide the parameters; tied and untied heads, another dtype than the files'; a missing
    head and a wrong size are told.
    """
    ranks = Ranks(3, ["-m", "tests.beds.loading_ranks", str(tmp_path)])
    assert ranks.wait(180) == [0, 0, 0], ranks.output
    assert all("equal" in output for output in ranks.output)

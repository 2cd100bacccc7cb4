"""What the benchmarks build is what transformers reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_large_checkpoint_is_one_random_layer_written_many_times(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train.bench import models

    narrow = {"hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2, "head_dim": 16}
    small = replace(models.SHAPES["llama3-70b"], layers=3, vocab=300, **narrow)
    monkeypatch.setitem(models.SHAPES, "small", small)
    place = models.checkpoint("small", tmp_path, quantization)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16)
    ups = [layer.mlp.up_proj.weight for layer in model.model.layers]
    assert len(ups) == 3
    assert all(torch.equal(up.data, ups[0].data) for up in ups)
    assert hasattr(ups[2], "quant_state") is (quantization == "nf4")
    ids = AutoTokenizer.from_pretrained(place)("ab", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(input_ids=ids).logits).all()

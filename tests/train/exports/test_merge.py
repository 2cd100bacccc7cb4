"""A merged model gives, from its files, the logits of base and adapter, whatever is trained; or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.beds.adapters import adapter_run, logits, share
from tests.beds.models import CHATML, native

pytestmark = pytest.mark.train

QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
KINDS: dict[str, dict[str, Any]] = {
    "tied, embedding": {"tied": True, "target_modules": ["q_proj", "embed_tokens"]},
    "tied, head": {"tied": True, "target_modules": ["q_proj", "lm_head"]},
    "tied, both": {"tied": True, "target_modules": ["embed_tokens", "lm_head"]},
    "tied, both with one adapter": {"tied": True, "target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "tied, embedding in full": {"tied": True, "modules_to_save": ["embed_tokens"]},
    "tied, head in full": {"tied": True, "modules_to_save": ["lm_head"]},
    "tied, both in full": {"tied": True, "modules_to_save": ["embed_tokens", "lm_head"]},
    "tied, DoRA on the embedding": {"tied": True, "use_dora": True, "target_modules": ["q_proj", "embed_tokens"]},
    "tied, nf4, embedding": {"tied": True, "quantization": "nf4", "target_modules": ["q_proj", "embed_tokens"]},
    "tied, bfloat16, head": {"tied": True, "dtype": "bfloat16", "target_modules": ["q_proj", "lm_head"]},
    "both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "a norm in full": {"modules_to_save": ["norm"]},
    "biases": {"bias": "all"},
    "nf4": {"quantization": "nf4"},
    "sharded": {"shards": "40KB"},
    "float16": {"dtype": "float16"},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """base(tied, dtype, shards) -> directory"""
    made: dict[Any, Path] = {}

    def base(tied: bool = False, dtype: str = "float32", shards: str = "1GB") -> Path:
        import torch
        from transformers import AutoModelForCausalLM

        key = (tied, dtype, shards)
        if key not in made:
            place = tmp_path_factory.mktemp("base")
            native(place, "Qwen2Config", QWEN, "<|im_end|>", CHATML, tie_word_embeddings=tied)
            model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype))
            (place / "model.safetensors").unlink()
            model.save_pretrained(place, max_shard_size=shards)
            made[key] = place
        return made[key]

    return base


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_a_merged_model_give_the_logits_of_base_and_adapter(bases: Any, tmp_path: Path, kind: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from train.answers.trained import find_adapter, load_adapted
    from train.exports.kinds import export

    lora = dict(KINDS[kind])
    base = bases(**{key: lora.pop(key) for key in ("tied", "dtype", "shards") if key in lora})
    assert len(list(base.glob("*.safetensors"))) > 1 or kind != "sharded"
    run = adapter_run(tmp_path / "run", base, **lora)
    export(run, "merged", tmp_path / "merged", lambda _: None)
    wanted = logits(load_adapted(find_adapter(run), device="cpu")[0])
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32))
    rounded = any(word in kind for word in ("nf4", "float16"))
    assert share(found, wanted) < (0.1 if rounded else 1e-5)
    plain = logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    assert share(plain, wanted) > 0.1  # the adapter matters


def test_a_merge_that_is_not_the_trained_model_is_refused_and_leaves_nothing(
    bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the weight of its own, the head of a tied model changes with the embedding."""
    from train import export
    from train.exports import merge

    run = adapter_run(tmp_path / "run", bases(tied=True), target_modules=["q_proj", "embed_tokens"])
    monkeypatch.setattr(merge, "_untie_if_adapted", lambda adapted: None)
    assert export.main(["--run-dir", str(run), "--to", "merged", "--out", str(tmp_path / "merged")]) == 1
    assert "error[ZL-EXPORT-02]: the merged model is not the trained one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_adapter_that_peft_cannot_merge_is_refused(
    bases: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from train import export

    run = adapter_run(tmp_path / "run", bases(), lora_bias=True)
    assert export.main(["--run-dir", str(run), "--to", "merged", "--out", str(tmp_path / "merged")]) == 2
    assert "cannot be merged: Impossible to merge LoRA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "error", "passes"),
    [
        ("float32", 1e-5, True),
        ("float32", 1e-2, False),
        ("bfloat16", 5e-3, True),  # noise, as large as this adapter's effect
        ("bfloat16", 3e-2, False),  # larger than noise, and all that the adapter did
        ("bfloat16", 1e-1, False),
        ("bfloat16", float("nan"), False),
    ],
)
def test_rounding_is_distinguished_from_a_lost_adapter(dtype: str, error: float, passes: bool) -> None:
    import torch

    from train.exports.merge import is_rounding

    generator = torch.Generator().manual_seed(0)
    untrained = torch.randn(2, 16, 100, generator=generator)
    untrained /= untrained.abs().max()
    direction = torch.randn(2, 16, 100, generator=generator).sign()
    trained = untrained + 3e-2 * direction
    assert is_rounding(trained, untrained, trained - error * direction, dtype) is passes

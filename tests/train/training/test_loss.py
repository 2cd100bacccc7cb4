"""The loss at labelled positions equals the loss from the model's own logits."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")

SHAPE: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "more", "split"),
    [
        ("LlamaConfig", {}, True),
        ("GPTNeoXConfig", {}, True),
        ("RecurrentGemmaConfig", {"lru_width": 16, "logits_soft_cap": 0.5, "num_hidden_layers": 3}, False),
        ("MiniCPM3Config", {"q_lora_rank": 8, "kv_lora_rank": 8}, False),
        ("CohereConfig", {"logit_scale": 0.3}, False),
        ("Gemma2Config", {"final_logit_softcapping": 0.5}, False),
        ("GraniteConfig", {"logits_scaling": 4.0}, False),
        ("GraniteConfig", {"logits_scaling": 1.0}, True),
        (
            "FalconH1Config",
            {"lm_head_multiplier": 0.1, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
            False,
        ),
    ],
)
def test_the_loss_is_that_of_the_models_own_logits(kind: str, more: dict[str, Any], split: bool) -> None:
    """`split`: whether the head is last, so that it may run on the labelled positions alone."""
    import transformers
    from peft import LoraConfig, get_peft_model

    from train.data.tokens import IGNORED
    from train.training.loss import AnswerLoss

    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**SHAPE, **more})
    base = transformers.AutoModelForCausalLM.from_config(config)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "q_b_proj", "query_key_value"])).eval()
    ids, labels = torch.randint(0, 50, (2, 12)), torch.randint(0, 50, (2, 12))
    labels[:, :5] = IGNORED
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float()
        expected = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
        )
        loss = AnswerLoss(model, fused=False)
        found = loss(ids, labels)
    assert loss.split is split
    assert float(found) == pytest.approx(float(expected), rel=1e-5)

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
    ("kind", "more"),
    [
        ("LlamaConfig", {}),
        ("CohereConfig", {"logit_scale": 0.3}),
        ("Gemma2Config", {"final_logit_softcapping": 0.5}),
        ("GraniteConfig", {"logits_scaling": 4.0}),
        (
            "FalconH1Config",
            {"lm_head_multiplier": 0.1, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
        ),
    ],
)
def test_models_that_change_the_logits_after_the_head_keep_their_loss(kind: str, more: dict[str, Any]) -> None:
    import transformers
    from peft import LoraConfig, get_peft_model

    from train.data.tokens import IGNORED
    from train.training.loss import AnswerLoss

    torch.manual_seed(0)
    config = getattr(transformers, kind)(**SHAPE, **more)
    base = transformers.AutoModelForCausalLM.from_config(config)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).eval()
    ids, labels = torch.randint(0, 50, (2, 12)), torch.randint(0, 50, (2, 12))
    labels[:, :5] = IGNORED
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float()
        expected = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
        )
        found = AnswerLoss(model, fused=False)(ids, labels)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)

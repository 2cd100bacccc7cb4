"""The fused layers compute what transformers + PEFT compute, and a packed record sees nothing of its neighbours."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-scaled": {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}},
    "mistral": {"sliding_window": None},
    "mistral-window": {"sliding_window": 5},
    "qwen2-window": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "ministral": {"sliding_window": 4, "head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 24,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"pad_token_id": 0},
    "phi3-part": {"pad_token_id": 0,
                  "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "phi3-window": {"pad_token_id": 0, "sliding_window": 6},
    "smollm3": {"no_rope_layers": [1, 0], "pad_token_id": 0},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.3,
                "attention_multiplier": 0.2},
    "glm4": {"head_dim": 8, "attention_bias": True, "pad_token_id": 0,
             "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "ernie4_5": {},
    "seed_oss": {"head_dim": 8, "attention_dropout": 0.0, "residual_dropout": 0.0, "attention_out_bias": True},
    "exaone4": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "exaone4-global": {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "glm": {"head_dim": 8, "attention_bias": True, "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
}  # fmt: skip


def build(name: str, layers: int = 2, **lora: Any) -> Any:
    """A tiny PEFT model of a family in double precision, its B matrices not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        name.partition("-")[0], vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        **CONFIGS[name],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).double()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)  # norms and biases too, so that a forgotten one shows
    kind = name.partition("-")[0]
    mlp = ["gate_up_proj"] if kind in ("glm", "glm4", "phi3") else ["gate_proj", "up_proj"]
    heads = ["qkv_proj"] if kind == "phi3" else ["q_proj", "k_proj", "v_proj"]
    targets = [*heads, "o_proj", *mlp, "down_proj"]
    settings = {"r": 8, "lora_alpha": 24, "target_modules": targets, **lora}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter, dtype=torch.float64) * 0.3
    return adapted


def packed(lengths: tuple[int, ...]) -> dict[str, Any]:
    torch.manual_seed(1)
    total = sum(lengths)
    labels = torch.randint(0, 97, (1, total))
    labels[torch.rand(1, total) < 0.4] = -100
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return {"input_ids": torch.randint(0, 97, (1, total)), "labels": labels, "position_ids": positions}


def reference(model: Any, batch: dict[str, Any], lengths: tuple[int, ...]) -> Any:
    """The plain engine, one record at a time: no packing at all."""
    from train.training.loss import AnswerLoss

    plain = AnswerLoss(model, fused=False)
    total = torch.zeros((), dtype=torch.float64)
    for ids, labels in zip(batch["input_ids"][0].split(lengths), batch["labels"][0].split(lengths), strict=True):
        total = total + plain(ids[None], labels[None])
    return total


def gradients(model: Any) -> dict[str, Any]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    ("name", "r", "checkpointing"),
    [(name, 8, False) for name in CONFIGS]
    + [
        ("gemma3_text", 3, True),
        ("granite", 3, True),
        ("llama", 4, False),
        ("llama", 8, True),
        ("qwen2", 3, False),
        ("qwen3", 8, True),
        ("glm", 4, True),
    ],
)
def test_loss_and_gradients_of_a_packed_row_equal_the_plain_engines_record_by_record(
    name: str, r: int, checkpointing: bool
) -> None:
    """With r = 3 or 4 the ranks beside a weight are not always a multiple of 8, as the width of their columns is."""
    from train.fused.model import fuse

    lengths = (7, 1, 12, 5)
    model, batch = build(name, r=r), packed(lengths)
    expected = reference(model, batch, lengths)
    expected.backward()
    wanted = gradients(model)
    loss = fuse(model, checkpointing=checkpointing)(**batch)
    loss.backward()
    found = gradients(model)
    # the reference's loss and norms run in float32 inside
    assert abs(loss.item() - expected.item()) < 1e-4 * abs(expected.item())
    for key, value in wanted.items():
        assert value.abs().max() > 0
        assert torch.linalg.norm(found[key] - value) < 1e-4 * torch.linalg.norm(value), key


def test_the_factor_of_a_loss_reaches_the_gradients_as_it_is() -> None:
    """1/222 is 1/221.4 in bfloat16: all gradients of a step would be 0.27% too large."""
    from train.fused.model import _HeadFunction

    torch.manual_seed(0)
    x, head, norm = torch.randn(64, 48), torch.randn(97, 48), torch.ones(48)
    x, head, norm = x.bfloat16().requires_grad_(), head.bfloat16(), norm.bfloat16()
    label_positions, targets = torch.arange(64), torch.randint(0, 97, (64,))
    found = []
    for factor in (1 / 256, 1 / 222):  # a power of two changes no digit
        loss = _HeadFunction.apply(x, label_positions, targets, head, norm, 1e-6) * factor
        found.append(torch.autograd.grad(loss, x)[0].double() / factor)
    assert float((found[1] * found[0]).sum() / found[0].square().sum()) == pytest.approx(1, abs=5e-4)


def test_a_record_is_the_same_alone_and_packed() -> None:
    from train.fused.model import fuse

    lengths = (9, 6, 11)
    model, batch = fuse(build("llama")), packed(lengths)
    rows = {key: value[0].split(lengths) for key, value in batch.items()}
    alone = [model(**{key: parts[i][None] for key, parts in rows.items()}).item() for i in range(3)]
    assert model(**batch).item() == pytest.approx(sum(alone), rel=1e-6)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, :9] = (changed["input_ids"][0, :9] + 1) % 97
    changed["labels"] = batch["labels"].clone()
    changed["labels"][0, :9] = -100
    untouched = {**batch, "labels": changed["labels"]}
    assert model(**changed).item() == model(**untouched).item()


def test_rows_of_a_dense_batch_are_separate_records() -> None:
    from train.fused.model import fuse

    batch = packed((8, 8, 8))
    model = fuse(build("llama"))
    rows = {key: value.reshape(3, 8) for key, value in batch.items() if key != "position_ids"}
    assert model(**rows).item() == pytest.approx(model(**batch).item(), rel=1e-9)


def test_only_some_projections_may_be_adapted() -> None:
    from train.fused.model import fuse

    lengths = (5, 8)
    model, batch = build("llama", target_modules=["q_proj", "v_proj", "down_proj"], r=3), packed(lengths)
    expected = reference(model, batch, lengths)
    expected.backward()
    wanted = gradients(model)
    fuse(model)(**batch).backward()
    for key, value in gradients(model).items():
        assert torch.linalg.norm(value - wanted[key]) < 1e-4 * torch.linalg.norm(wanted[key]), key


def test_the_model_still_works_as_a_transformers_model_after_fusing() -> None:
    from train.fused.model import fuse

    model, batch = build("llama"), packed((6,))
    before = model(input_ids=batch["input_ids"]).logits
    fuse(model)
    assert torch.equal(model(input_ids=batch["input_ids"]).logits, before)


@pytest.mark.parametrize(("lora", "reason"), [({"lora_dropout": 0.1}, "dropout"), ({"use_dora": True}, "trained|DoRA")])
def test_what_the_layers_do_not_compute_is_refused_with_its_reason(lora: dict[str, Any], reason: str) -> None:
    from train.fused.model import fuse

    with pytest.raises(ValueError, match=reason):
        fuse(build("llama", **lora))


def test_a_hundred_steps_follow_the_plain_engines_loss_curve() -> None:
    """bfloat16, packed against one record at a time, the same records in the same order: within a hundredth."""
    from train.fused.model import fuse

    lengths = (9, 6, 11)
    curves = []
    for fast in (False, True):
        model = build("llama").bfloat16()
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.float() * 0.1
        loss_of = fuse(model) if fast else None
        optimizer, found = torch.optim.AdamW(trained, lr=3e-3), []
        for step in range(100):
            batch = packed(lengths[step % 3 :] + lengths[: step % 3])
            order = lengths[step % 3 :] + lengths[: step % 3]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = reference(model, batch, order) if loss_of is None else loss_of(**batch)
            (loss / 15).backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        curves.append(found)
    assert curves[1][-1] < 0.8 * curves[1][0]
    assert max(abs(a - b) / a for a, b in zip(*curves, strict=True)) < 0.01

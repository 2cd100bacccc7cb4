"""The compatibility gate: each refusal, its reason, its advice; and that the claims are true where a CPU can tell."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from train import compat, families
from train.compat import RULES, Combination, check, engine_for
from train.config import Data, Lora, Model, TrainConfig, Training


def corrected(settings: Combination) -> Combination:
    """Follow the advice of each refusal in turn until the settings work together."""
    for _ in range(2 * len(RULES)):
        refusals = check(settings)
        if not refusals:
            return settings
        settings = replace(settings, **refusals[0].changes)
    raise AssertionError("the rules' advice goes in a circle")


FAMILY = {family.name: family for family in families.FAMILIES}

RECURRENT = families.family_of({"model_type": "qwen3_next"})
PHI = families.family_of({"model_type": "phi3"})
MIXTURE = families.family_of({"model_type": "qwen3_moe", "num_experts": 128})

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"family": FAMILY["baichuan-alibi"], "engine": "fused"}, "no fused layers", "train.engine: auto"),
    ({"engine": "fused", "quantization": "int8"}, "int8", "train.engine: auto"),
    ({"engine": "fused", "quantization": "nf4", "zero_stage": 3}, "ZeRO-3", "train.engine: auto"),
    ({"engine": "peft", "quantization": "fp8"}, "only the fused layers", "model.quantization: none"),
    ({"wide": True, "quantization": "fp8"}, "nothing else", "model.quantization: none"),
    ({"dropout": True, "quantization": "fp8"}, "LoRA dropout", "model.quantization: none"),
    ({"family": families.ANY, "quantization": "fp8"}, "not in the table", "model.quantization: none"),
    ({"quantization": "fp8", "device": "cpu"}, "need a GPU", "model.quantization: none"),
    ({"quantization": "fp8", "capability": (8, 6)}, "8.9", "model.quantization: none"),
    ({"quantization": "fp8", "dtype": "float16"}, "bfloat16", "model.dtype: bfloat16"),
    ({"engine": "fused", "dora": True}, "DoRA", "train.engine: auto"),
    ({"engine": "fused", "dropout": True}, "dropout", "train.engine: auto"),
    ({"engine": "fused", "wide": True}, "nothing else", "train.engine: auto"),
    ({"engine": "fused", "dtype": "float32"}, "16 bits", "train.engine: auto"),
    ({"engine": "fused", "dtype": "float16", "capability": (7, 5)}, "8.0", "train.engine: auto"),
    ({"engine": "fused", "zero_stage": 3, "offload": "cpu"}, "partition", "train.engine: auto"),
    ({"family": FAMILY["baichuan-alibi"], "engine": "unsloth"}, "ALiBi", "train.engine: peft"),
    ({"family": FAMILY["chatglm2"], "engine": "unsloth"}, "GLM", "train.engine: peft"),
    ({"engine": "unsloth", "quantization": "int8"}, "int8", "train.engine: peft"),
    ({"engine": "unsloth", "quantization": "nf4", "zero_stage": 3}, "ZeRO-3", "train.engine: peft"),
    ({"engine": "unsloth", "dora": True}, "DoRA", "train.engine: peft"),
    ({"engine": "unsloth", "adapter": True}, "adapter", "train.engine: peft"),
    ({"engine": "unsloth", "embeddings": True}, "whole matrices instead of LoRA", "train.engine: peft"),
    ({"engine": "unsloth", "device": "cpu", "init": "pissa"}, "PiSSA", "train.engine: peft"),
    ({"quantization": "int8", "zero_stage": 3}, "bitsandbytes issue 1451", "train.zero_stage: 2"),
    ({"family": MIXTURE, "quantization": "nf4"}, "experts", "model.quantization: none"),
    ({"family": MIXTURE, "quantization": "int8"}, "experts", "model.quantization: none"),
    ({"engine": "fused", "rope": "dynamic"}, "depends on the length", "train.engine: auto"),
    ({"engine": "unsloth", "rope": "yarn"}, "a rule of its own", "train.engine: peft"),
    ({"family": PHI, "router_loss": True}, "it has no experts", "train.router_loss: 0"),
    ({"family": MIXTURE, "engine": "unsloth", "router_loss": True}, "its own loss", "train.engine: peft"),
    ({"init": "pissa", "quantization": "nf4"}, "decomposed", "lora.init: default"),
    ({"init": "olora", "quantization": "nf4"}, "OLoRA decomposes the weights", "lora.init: default"),
    ({"init": "olora", "zero_stage": 3}, "no rank has them", "train.zero_stage: 2"),
    ({"init": "gaussian", "adapter": True}, "existing adapter", "lora.init: default"),
    ({"engine": "unsloth", "init": "orthogonal"}, "Unsloth has no initialization orthogonal", "train.engine: peft"),
    ({"engine": "unsloth", "own_ranks": True}, "Unsloth trains all modules", "train.engine: peft"),
    ({"init": "pissa", "quantization": "int8"}, "decomposed", "lora.init: default"),
    ({"init": "pissa", "zero_stage": 3}, "no rank has them", "train.zero_stage: 2"),
    ({"init": "pissa", "adapter": True}, "existing adapter", "lora.init: default"),
    ({"init": "pissa", "dora": True}, "DoRA", "lora.init: default"),
    ({"init": "olora", "quantization": "nf4"}, "OLoRA decomposes", "lora.init: default"),
    ({"dora": True, "quantization": "int8"}, "norms", "model.quantization: nf4"),
    ({"dora": True, "quantization": "nf4", "zero_stage": 3}, "no rank has them", "train.zero_stage: 2"),
    ({"dora": True, "zero_stage": 3}, "no rank has them", "train.zero_stage: 2"),
    ({"family": families.ANY, "packing": "pack"}, "see each other", "train.packing: bucket"),
    ({"family": RECURRENT, "packing": "pack"}, "carry what they read", "train.packing: bucket"),
    ({"family": PHI, "engine": "unsloth", "packing": "pack"}, "only plain transformers", "train.engine: peft"),
    ({"dtype": "bfloat16", "capability": (7, 5)}, "emulate", "model.dtype: float16"),
    ({"dtype": "float16", "device": "cpu"}, "CPU", "model.dtype: float32"),
    ({"engine": "unsloth", "quantization": "published"}, "other packages have packed", "train.engine: auto"),
    ({"quantization": "published", "zero_stage": 3}, "no parameters", "train.zero_stage: 2"),
    ({"quantization": "published", "dora": True}, "no DoRA", "model.quantization: nf4"),
    ({"engine": "fused", "noise": True}, "NEFTune", "train.engine: auto"),
    ({"engine": "fused", "smoothing": True}, "label smoothing", "train.engine: auto"),
    ({"engine": "unsloth", "smoothing": True}, "own loss", "train.engine: peft"),
    ({"optimizer": "adamw_8bit", "zero_stage": 2}, "8-bit states", "train.zero_stage: 0"),
    ({"optimizer": "muon", "zero_stage": 1}, "whole matrices", "train.zero_stage: 0"),
    ({"optimizer": "adafactor", "zero_stage": 3, "engine": "peft"}, "rows and columns", "train.optimizer: adamw"),
    ({"optimizer": "lion", "zero_stage": 2, "offload": "cpu"}, "AdamW only", "train.optimizer: adamw"),
    ({"offload": "cpu"}, "DeepSpeed", "train.zero_stage: 2"),
    ({"offload_param": "cpu", "zero_stage": 2}, "ZeRO-3 only", "train.offload_param: none"),
    ({"offload_param": "cpu", "zero_stage": 3, "engine": "fused"}, "on the GPUs", "train.engine: auto"),
]

ALLOWED: list[dict[str, Any]] = [
    {},
    {"engine": "fused", "quantization": "nf4", "zero_stage": 2, "packing": "pack", "adapter": True},
    {"family": FAMILY["baichuan"], "engine": "fused"},
    {"engine": "fused", "zero_stage": 3},
    {"family": FAMILY["mistral"], "packing": "pack"},
    {"engine": "unsloth"},
    {"engine": "unsloth", "zero_stage": 3},
    {"engine": "unsloth", "quantization": "nf4", "zero_stage": 2},
    {"engine": "unsloth", "packing": "pack"},
    {"quantization": "nf4", "zero_stage": 3},
    {"quantization": "int8", "zero_stage": 2},
    {"dora": True, "quantization": "nf4"},
    {"init": "pissa", "zero_stage": 2},
    {"dora": True, "zero_stage": 2},
    {"optimizer": "muon"},
    {"optimizer": "adamw_8bit", "zero_stage": 3, "engine": "fused"},
    {"optimizer": "adafactor", "quantization": "nf4"},
    {"smoothing": True, "engine": "unsloth", "device": "cpu"},
    {"noise": True, "engine": "unsloth", "zero_stage": 2},
    {"offload": "cpu", "zero_stage": 1},
    {"offload": "cpu", "zero_stage": 2, "device": "cpu"},
    {"offload_param": "cpu", "zero_stage": 3},
    {"dtype": "float16", "capability": (7, 5)},
    {"dtype": "float16", "capability": (8, 0)},
    {"engine": "fused", "dtype": "float16", "capability": (9, 0)},
    {"dtype": "bfloat16", "device": "cpu"},
    {"family": FAMILY["baichuan-alibi"], "engine": "peft", "quantization": "nf4", "packing": "pack"},
    {"family": FAMILY["chatglm3"], "engine": "peft", "packing": "pack"},
    {"family": families.ANY, "engine": "unsloth"},
]


@pytest.mark.parametrize(("settings", "reason", "instead"), REFUSED, ids=str)
def test_what_cannot_work_is_refused_with_its_reason_and_what_does(
    settings: dict[str, Any], reason: str, instead: str
) -> None:
    refusals = check(Combination(**settings))
    assert any(reason in refusal.reason and refusal.instead == instead for refusal in refusals), refusals
    assert check(corrected(Combination(**settings))) == []


@pytest.mark.parametrize("settings", ALLOWED, ids=str)
def test_what_works_is_not_refused(settings: dict[str, Any]) -> None:
    assert check(Combination(**settings)) == []


def test_float16_is_warned_of_where_the_gpus_have_bfloat16() -> None:
    for capability, warned in (((9, 0), True), ((8, 0), True), ((7, 5), False), (None, False)):
        warnings = compat.warnings(Combination(dtype="float16", capability=capability))
        assert [key for key, _ in warnings] == ["model.dtype"] * warned
    assert compat.warnings(Combination(dtype="bfloat16", capability=(9, 0))) == []


def test_every_rule_has_a_refusal_in_this_file() -> None:
    hit = {rule for rule in compat.RULES for settings, _, _ in REFUSED if rule.applies(Combination(**settings))}
    assert [rule.key for rule in compat.RULES if rule not in hit] == []


def test_the_advice_leads_to_working_settings_from_every_combination() -> None:
    values: dict[str, tuple[Any, ...]] = {
        "family": families.FAMILIES,
        "engine": ("auto", "fused", "unsloth", "peft"),
        "quantization": ("none", "nf4", "int8", "fp8", "published"),
        "dtype": ("auto", "float16", "bfloat16"),
        "device": ("cuda", "cpu"),
        "capability": (None, (7, 5), (9, 0)),
        "zero_stage": (0, 2, 3),
        "offload": ("none", "cpu"),
        "offload_param": ("none", "cpu"),
        "packing": ("bucket", "pack"),
        "optimizer": ("adamw", "adamw_8bit", "muon"),
        "noise": (False, True),
        "smoothing": (False, True),
        "dora": (False, True),
        "init": ("default", "gaussian", "olora", "pissa"),
        "own_ranks": (False, True),
        "adapter": (False, True),
        "dropout": (False, True),
        "embeddings": (False, True),
        "rope": ("none", "dynamic"),
        "router_loss": (False, True),
        "wide": (False, True),
    }
    assert set(values) == {field.name for field in fields(Combination)}
    # What the user meant is not changed.
    kept = ("family", "device", "capability", "dora", "adapter", "dropout", "embeddings", "wide", "noise", "smoothing")
    kept = (*kept, "own_ranks")
    combinations = itertools.islice(
        itertools.product(*values.values()), 0, None, 1283
    )  # 1283 shares no factor with the sizes
    for combination in combinations:
        settings = Combination(**dict(zip(values, combination, strict=True)))
        end = corrected(settings)
        assert check(end) == []
        assert all(getattr(end, name) == getattr(settings, name) for name in kept)


def test_the_engine_chosen_for_auto_is_never_one_that_the_gate_refuses() -> None:
    for family, quantization, device, zero, dora, dropout, wide in itertools.product(
        families.FAMILIES, ("none", "nf4", "int8", "fp8"), ("cuda", "cpu"), range(4), *[(False, True)] * 3
    ):
        settings = Combination(family=family, quantization=quantization, device=device, zero_stage=zero, dora=dora)
        settings = replace(settings, dropout=dropout, wide=wide)
        engine, reason = engine_for(settings)
        refusals = check(replace(settings, engine=engine))
        assert [refusal for refusal in refusals if "train.engine" in refusal.instead] == []
        assert reason


def test_settings_are_read_from_a_training_configuration() -> None:
    config = TrainConfig(
        run_id="r",
        device="cpu",
        model=Model(quantization="int8", dtype="float32"),
        data=Data(),
        lora=Lora(init="pissa", adapter="a", dropout=0.1, target_modules=("lm_head",)),
        train=Training(
            global_batch_size=1, micro_batch_size=1, gradient_accumulation_steps=1, zero_stage=3, engine="unsloth"
        ),
    )
    settings = Combination.of(config, families.BAICHUAN, (8, 6))
    assert settings == Combination(
        family=families.BAICHUAN,
        engine="unsloth",
        quantization="int8",
        dtype="float32",
        device="cpu",
        capability=(8, 6),
        zero_stage=3,
        init="pissa",
        adapter=True,
        dropout=True,
        embeddings=True,
        wide=True,
    )
    for lora, expected in (
        (Lora(target_modules=("q_proj", "model.embed_tokens")), True),
        (Lora(target_modules=r".*(q_proj|lm_head)"), True),
        (Lora(target_modules=r".*\.q_proj"), False),
        (Lora(target_modules="all-linear"), False),  # without the head
        (Lora(modules_to_save=("lm_head", "model.embed_tokens")), True),
        (Lora(modules_to_save=("lm_head",)), False),
        (Lora(target_modules="("), False),
    ):
        assert Combination.of(structs.replace(config, lora=lora), families.BAICHUAN).embeddings is expected


# ---------------------------------------------------------------- the claims, tried on a CPU


def train_a_little(place: Path, kind: str, quantization: str, **lora: Any) -> list[float]:
    """Losses of six steps of plain PEFT on a tiny model."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GlmConfig, LlamaConfig

    from train.original import alibi

    alibi.register()
    shape = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(0)
    configs = {"llama": LlamaConfig, "glm": GlmConfig, "alibi": alibi.AlibiLlamaConfig}
    AutoModelForCausalLM.from_config(configs[kind](**shape)).save_pretrained(place)
    bits = {"nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "int8": {"load_in_8bit": True}}
    options = {} if quantization == "none" else {"quantization_config": BitsAndBytesConfig(**bits[quantization])}
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if options:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets = families.GLM_TARGETS if kind == "glm" else families.LLAMA_TARGETS
    model = get_peft_model(model, LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM", **lora))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.randint(3, 256, (1, 12), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(6):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.train
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("kind", ["llama", "glm", "alibi"])
def test_every_layout_trains_in_every_quantisation(kind: str, quantization: str, tmp_path: Path) -> None:
    losses = train_a_little(tmp_path, kind, quantization)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.train
@pytest.mark.parametrize(
    ("quantization", "lora"),
    [("none", {"use_dora": True}), ("nf4", {"use_dora": True}), ("none", {"init_lora_weights": "pissa"})],
    ids=str,
)
def test_the_allowed_kinds_of_lora_train(quantization: str, lora: dict[str, Any], tmp_path: Path) -> None:
    losses = train_a_little(tmp_path, "llama", quantization, **lora)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.train
@pytest.mark.parametrize(
    ("quantization", "lora", "error"),
    [
        ("nf4", {"init_lora_weights": "pissa"}, TypeError),
        ("int8", {"init_lora_weights": "pissa"}, TypeError),
        ("int8", {"use_dora": True}, AttributeError),
    ],
    ids=str,
)
def test_the_refused_kinds_of_lora_do_not_train(
    quantization: str, lora: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    """When one of these begins to work, its rule can go."""
    with pytest.raises(error):
        train_a_little(tmp_path, "llama", quantization, **lora)

"""The table of families: who is recognised as what, and which engine trains it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest

from train import families
from train.compat import Combination, engine_for
from train.families import family_of, needs_conversion

REPOSITORY = Path(__file__).resolve().parents[2]
ROTARY = {"max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("config", "name", "conversion"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "llama", False),
        ({"model_type": "qwen2"}, "qwen", False),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "qwen", False),
        ({"model_type": "chatglm", "architectures": ["ChatGLMModel"]}, "chatglm2", True),
        ({"architectures": ["ChatGLMForConditionalGeneration"]}, "chatglm2", True),
        ({"model_type": "chatglm", "_name_or_path": "THUDM/ChatGLM3-6B"}, "chatglm3", True),
        ({"model_type": "baichuan", "architectures": ["BaiChuanForCausalLM"], **ROTARY}, "baichuan", True),
        ({"model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], **ROTARY}, "baichuan", True),
        ({"architectures": ["BaichuanForCausalLM"], "model_max_length": 4096}, "baichuan-alibi", True),
        ({"model_type": "alibi_llama"}, "baichuan-alibi", False),
        ({"model_type": "llama", families.MARKER: "baichuan"}, "baichuan", False),
        ({"model_type": "glm", families.MARKER: "chatglm3"}, "chatglm3", False),
        ({"model_type": "glm"}, "glm", False),
        ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, "any", False),
        ({"model_type": "qwen3_moe"}, "any", False),
        ({}, "any", False),
        ({"model_type": "llama", families.MARKER: "unheard of"}, "llama", False),
    ],
    ids=str,
)
def test_a_config_names_its_family(config: dict, name: str, conversion: bool) -> None:
    assert family_of(config).name == name
    assert needs_conversion(config) is (conversion and families.MARKER not in config)


@pytest.mark.parametrize(
    ("name", "options", "engine", "words"),
    [
        ("llama", {}, "fused", "fused layers"),
        ("llama", {"zero_stage": 3}, "fused", "fused layers"),
        ("llama", {"dropout": True}, "unsloth", "dropout"),
        ("llama", {"dora": True}, "peft", "DoRA"),
        ("llama", {"wide": True}, "unsloth", "nothing else"),
        ("llama", {"dtype": "float16"}, "fused", "fused layers"),
        ("llama", {"dtype": "float16", "capability": (7, 5)}, "unsloth", "8.0"),
        ("qwen", {"device": "cpu"}, "unsloth", "CPU backend"),
        ("baichuan", {}, "fused", "fused layers"),
        ("baichuan", {"device": "cpu"}, "unsloth", "Llama"),
        ("baichuan-alibi", {}, "peft", "ALiBi"),
        ("chatglm3", {}, "fused", "fused layers"),
        ("chatglm3", {"dropout": True}, "peft", "dropout"),
        ("chatglm3", {"device": "cpu"}, "peft", "GLM"),
        ("any", {}, "peft", "not in the table"),
        ("llama", {"quantization": "int8"}, "peft", "int8"),
        ("llama", {"quantization": "nf4", "zero_stage": 3}, "peft", "ZeRO-3"),
        ("llama", {"quantization": "nf4", "zero_stage": 2, "dropout": True}, "unsloth", "dropout"),
        ("llama", {"device": "cpu", "init": "pissa"}, "peft", "PiSSA"),
        ("llama", {"engine": "peft"}, "peft", "in the job"),
        ("any", {"engine": "unsloth"}, "unsloth", "in the job"),
    ],
)
def test_the_engine_is_chosen_with_a_reason(name: str, options: dict, engine: str, words: str) -> None:
    family = next(family for family in families.FAMILIES if family.name == name)
    chosen, reason = engine_for(Combination(family=family, **options))
    assert chosen == engine
    assert words in reason


def test_without_unsloth_the_next_engine_is_taken() -> None:
    assert engine_for(Combination(device="cpu"), unsloth_installed=False) == ("peft", "Unsloth is not installed here")


def test_no_two_families_claim_one_name() -> None:
    for of in (lambda f: f.model_types, lambda f: f.architectures, lambda f: (f.name,)):
        claimed = [name for family in families.FAMILIES for name in of(family)]
        assert len(claimed) == len(set(claimed))


@pytest.mark.parametrize("family", [f for f in families.FAMILIES if f.chat_template], ids=lambda f: f.name)
def test_the_prompt_of_an_answer_is_what_training_saw_before_it(family: families.Family) -> None:
    text = re.sub("{% (end)?generation %}", "", str(family.chat_template))  # transformers' marks around answers
    template = jinja2.Environment().from_string(text)
    roles = ["system", "user", "assistant", "user", "assistant"]
    messages = [{"role": role, "content": f"text {n}"} for n, role in enumerate(roles)]
    names = {"eos_token": "</s>", "tools": None}
    whole = template.render(messages=messages, add_generation_prompt=False, **names)
    for end in (2, 4):
        prompt = template.render(messages=messages[:end], add_generation_prompt=True, **names)
        trained = template.render(messages=messages[: end + 1], add_generation_prompt=False, **names)
        assert trained.startswith(prompt)
        assert f"text {end}" in trained.removeprefix(prompt)
    assert all(f"text {n}" in whole for n in range(5))


def test_reading_the_table_and_the_gate_needs_no_torch() -> None:
    program = (
        "import sys, train.families, train.compat; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        {**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                   "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
        {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {**LLAMA, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        {**LLAMA, "mlp_bias": True},
        {**LLAMA, "attention_dropout": 0.1},
        {**LLAMA, "hidden_act": "gelu"},
        {**LLAMA, "model_type": "mistral"},
        {**LLAMA, "model_type": "mistral", "sliding_window": 4096},
        {**LLAMA, "model_type": "mistral", "sliding_window": None},
        {**LLAMA, "model_type": "qwen2", "sliding_window": 4096},
        {**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4096},
        {**LLAMA, "model_type": "qwen3"},
        {**LLAMA, "model_type": "glm"},
    ],
    ids=str,
)  # fmt: skip
def test_config_json_decides_about_the_fused_layers_like_the_loaded_model(config: dict) -> None:
    transformers, fused = pytest.importorskip("transformers"), pytest.importorskip("train.fused.model")
    torch = pytest.importorskip("torch")
    model = torch.nn.Module()
    model.config = transformers.AutoConfig.for_model(**config)
    model.get_base_model = lambda: model
    family = family_of(config)
    assert ("fused" in family.engines) is (fused.unsupported_reason(model) is None)
    assert bool(family.unfused) is ("fused" not in family.engines)
    if family.unfused:
        engine, why = engine_for(Combination(family=family))
        assert engine != "fused"
        assert family.unfused in why

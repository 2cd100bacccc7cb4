"""Exports say the same to transformers 4, vLLM, llama.cpp and Ollama as to transformers 5.

`make transformers4` runs the last test here: an environment with transformers 4.57 loads every export.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.beds import original
from tests.beds.adapters import adapter_run, logits, share
from tests.beds.models import CHATML, MODELS, native
from train.original.portable import make_portable, portable_config, portable_tokenizer_config

QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
LAYERS = ["sliding_attention", "full_attention"]
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "theta": ("Qwen2Config", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "llama3": ("LlamaConfig", {"rope_parameters": {**LLAMA3_ROPE, "original_max_position_embeddings": 64}}),
    "two ropes": ("Gemma3TextConfig", {"sliding_window": 8, "layer_types": LAYERS, "rope_parameters": TWO_ROPES}),
    "part of a head": ("PhiConfig", {"partial_rotary_factor": 0.5}),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "experts": ("Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
}
FAMILIES = ("chatglm2", "chatglm3", "glm4", "baichuan2", "baichuan2-13b")


@pytest.mark.parametrize(
    ("config", "added"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6, "rope_scaling": None}),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}},
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "type": "yarn"}},
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            {"rope_theta": 1e4, "rope_scaling": None, "partial_rotary_factor": 0.5},
        ),
        (
            {"rope_parameters": TWO_ROPES},
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0, "type": "linear"},
            },
        ),
        (
            {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
            {"rope_theta": 1e4, "rope_scaling": None, "partial_rotary_factor": 0.25}
            | {"rotary_emb_base": 1e4, "rotary_pct": 0.25},
        ),
        ({"model_type": "qwen3_moe", "num_local_experts": 4}, {"num_experts": 4}),
        ({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}),
        ({"rope_parameters": {}}, {}),
        ({}, {}),
    ],
)
def test_config_json_has_the_names_of_both(config: dict[str, Any], added: dict[str, Any]) -> None:
    assert portable_config(config, {}) == {**config, **added}


def test_config_json_keeps_the_names_its_model_was_published_with() -> None:
    published = {
        "rope_theta": 5.0,
        "rotary_dim": 8,
        "torch_dtype": "float16",
        "quantization_config": {},
        "vocab_size": 9,
    }
    config = {"dtype": "bfloat16", "vocab_size": 10, "text_config": {"model_type": "x", "rope_parameters": {}}}
    made = portable_config(config, published)
    assert made == {**config, "torch_dtype": "bfloat16", "rope_theta": 5.0, "rotary_dim": 8}


def test_parts_of_a_config_have_them_too() -> None:
    inner = {"model_type": "qwen2", "dtype": "float32", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    made = portable_config({"model_type": "x", "text_config": inner}, {"text_config": {"rope_old": 1}})
    assert made["text_config"] == {
        **inner, "torch_dtype": "float32", "rope_theta": 1e6, "rope_scaling": None, "rope_old": 1
    }  # fmt: skip


def test_the_tokenizer_has_a_class_that_both_know() -> None:
    config = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True, "eos_token": "</s>"}
    assert portable_tokenizer_config({**config, "extra_special_tokens": ["<a>"]}, "{{ x }}") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "additional_special_tokens": ["<a>"],
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": "{{ x }}",
    }
    remote = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    assert portable_tokenizer_config(remote, None)["tokenizer_class"] == "Mine"


def test_a_tokenizer_model_of_the_base_comes_along_and_its_added_tokens_are_named(tmp_path: Path) -> None:
    base, place = tmp_path / "base", tmp_path / "place"
    base.mkdir()
    place.mkdir()
    (base / "tokenizer.model").write_bytes(b"pieces")
    token = {"content": "<x>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    (place / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 9, "special": True, **token}]}))
    (place / "tokenizer_config.json").write_text("{}")
    make_portable(place, base)
    assert (place / "tokenizer.model").read_bytes() == b"pieces"
    assert json.loads((place / "added_tokens.json").read_text()) == {"<x>": 9}
    decoder = json.loads((place / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert decoder == {"9": {**token, "special": True}}


# Real exports ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with both exports of every base, and in ref.pt what base and adapter give there."""
    import torch

    from train.answers.trained import find_adapter, load_adapted
    from train.exports.kinds import export
    from train.original.conversion import converted

    place = tmp_path_factory.mktemp("exports")
    made = {}
    for name in (*BASES, *FAMILIES):
        if name in BASES:
            config, shape = BASES[name]
            base = native(place / name, config, QWEN, "<|im_end|>", CHATML, **shape)
            make_portable(base)  # as models are published that both can read
        else:
            base = converted(MODELS[name][1](place / name), lambda _: None, place / "cache")
            make_portable(base)
        targets = {"target_modules": ["q_proj", "v_proj"]} if name == "experts" else {}
        run = made[name] = adapter_run(place / f"run-{name}", base, **targets)
        for kind in ("merged", "adapter"):
            export(run, kind, run / f"x-{kind}", lambda _: None)
        model, tokenizer = load_adapted(find_adapter(run), device="cpu")
        torch.save(
            {"logits": logits(model), "ids": tokenizer(original.varied_strings(40))["input_ids"]}, run / "ref.pt"
        )
    return made


@pytest.mark.train
@pytest.mark.parametrize("name", [*BASES, *FAMILIES])
def test_every_export_has_both_names_and_loads_as_before(runs: dict[str, Path], name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = runs[name] / "x-merged"
    config = json.loads((merged / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "float32"
    if name != "baichuan2-13b":  # without rotary positions
        rope = config["rope_parameters"].get("full_attention", config["rope_parameters"])
        assert config["rope_theta"] == rope["rope_theta"]
        assert (config["rope_scaling"] or {}).get("rope_type", "default") == rope["rope_type"]
    for kind in ("x-merged", "x-adapter"):
        settings = json.loads((runs[name] / kind / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert settings["chat_template"] == (runs[name] / kind / "chat_template.jinja").read_text()
        sentencepiece = name in FAMILIES and name != "glm4"
        assert (runs[name] / kind / "tokenizer.model").exists() is sentencepiece
    wanted = torch.load(runs[name] / "ref.pt")
    own = {"trust_remote_code": True}
    assert share(logits(AutoModelForCausalLM.from_pretrained(merged, **own)), wanted["logits"]) < 1e-5
    assert AutoTokenizer.from_pretrained(merged, **own)(original.varied_strings(40))["input_ids"] == wanted["ids"]


LOAD = """
import json, sys, torch, transformers
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4.57")
texts, found = json.loads(sys.argv[1]), {}
own = {"trust_remote_code": True}
for run in map(Path, sys.argv[2:]):
    wanted = torch.load(run / "ref.pt")
    for kind in ("merged", "adapter"):
        place = run / f"x-{kind}"
        tokenizer = AutoTokenizer.from_pretrained(place)
        if kind == "merged":
            model = AutoModelForCausalLM.from_pretrained(place, torch_dtype=torch.float32, **own)
        else:
            base = json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"]
            model = AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32, **own)
            model = PeftModel.from_pretrained(model, place)
        ids = (torch.arange(1, 65) * 37 % model.get_input_embeddings().weight.shape[0]).reshape(2, 32)
        with torch.no_grad():
            logits = model.eval()(input_ids=ids).logits
        question = tokenizer.apply_chat_template(
            [{"role": "user", "content": "1"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        model.generate(**question, max_new_tokens=2)
        difference = ((logits - wanted["logits"]).abs().max() / wanted["logits"].abs().max()).item()
        found[f"{run.name} {kind}"] = [difference, tokenizer(texts)["input_ids"] == wanted["ids"]]
print(json.dumps(found))
"""


@pytest.mark.train
@pytest.mark.skipif("TRANSFORMERS4" not in os.environ, reason="make transformers4")
def test_transformers_4_loads_every_export_with_the_same_tokens_and_logits(runs: dict[str, Path]) -> None:
    command = [
        os.environ["TRANSFORMERS4"],
        "-c",
        LOAD,
        json.dumps(original.varied_strings(40)),
        *map(str, runs.values()),
    ]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, env=clean, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2 * len(runs)
    assert {name: same for name, (_, same) in found.items()} == dict.fromkeys(found, True)
    assert {name: difference for name, (difference, _) in found.items() if not difference < 1e-5} == {}

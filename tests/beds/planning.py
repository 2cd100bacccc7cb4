"""Jobs, models and GPUs for tests of what `auto` means."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.job.load import convert
from launcher.job.spec import JobSpec
from launcher.plan import gpus
from launcher.plan.candidates import Candidate
from launcher.plan.fastest import choose
from launcher.plan.situation import Situation, model_of
from launcher.render import texts
from tests.beds.plans import make
from train.config import TrainConfig, load
from train.memory import GIB

CHATGLM2 = {
    "model_type": "chatglm", "architectures": ["ChatGLMModel"], "num_layers": 28, "hidden_size": 4096,
    "ffn_hidden_size": 13696, "num_attention_heads": 32, "multi_query_attention": True, "multi_query_group_num": 2,
    "kv_channels": 128, "padded_vocab_size": 65024,
}  # fmt: skip
BAICHUAN_13B = {
    "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "num_hidden_layers": 40, "hidden_size": 5120,
    "intermediate_size": 13696, "num_attention_heads": 40, "vocab_size": 125696,
}  # fmt: skip
BAICHUAN_7B = {**BAICHUAN_13B, "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
               "num_attention_heads": 32, "max_position_embeddings": 4096}  # fmt: skip
GLM4 = {**CHATGLM2, "model_type": "glm", "architectures": ["GlmForCausalLM"]}
LLAMA_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096,
    "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
LLAMA_70B = {**LLAMA_8B, "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
             "num_attention_heads": 64}  # fmt: skip
MISTRAL = {**LLAMA_8B, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "vocab_size": 32000}
GEMMA = {**LLAMA_8B, "model_type": "gemma", "architectures": ["GemmaForCausalLM"], "num_hidden_layers": 18,
         "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8, "num_key_value_heads": 1,
         "head_dim": 256, "vocab_size": 256000, "hidden_act": "gelu"}  # fmt: skip
UNTYPED = {key: value for key, value in LLAMA_8B.items() if key not in ("model_type", "architectures")}
MODELS: dict[str, dict[str, Any] | None] = {
    "llama": LLAMA_8B, "70b": LLAMA_70B, "chatglm2": CHATGLM2, "glm4": GLM4, "baichuan-7b": BAICHUAN_7B,
    "baichuan-13b": BAICHUAN_13B, "gemma": GEMMA, "untyped": UNTYPED,
    "sliding": {**MISTRAL, "sliding_window": 4096}, "mistral": {**MISTRAL, "sliding_window": None},
    "wrapped": {"model_type": "mistral3", "text_config": MISTRAL},
    "dynamic": {**LLAMA_8B, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "small": {**LLAMA_8B, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
              "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 256000},
    "llama3-8b": None, "baichuan2-13b": None,
}  # fmt: skip
AXES: dict[str, tuple[Any, ...]] = {  # the first is what a job has that says nothing
    "train.zero_stage": ("auto", 0, 1, 2, 3),
    "train.packing": ("auto", "none", "bucket", "pack"),
    "train.gradient_checkpointing": ("auto", True, False),
    "train.engine": ("auto", "unsloth", "peft", "fused"),
    "train.global_batch_size": ("auto", 64, "about 30", 96, 10, 1),
    "train.micro_batch_size": ("auto", 1, 4, 16),
    "train.offload": ("none", "cpu"),
    "model.quantization": ("none", "nf4", "int8"),
    "model.dtype": ("auto", "bfloat16", "float16", "float32"),
    "data.max_length": (2048, 128, 512, 8192, 32768),
    "lora.r": (16, 1, 512),
    "lora.dora": (False, True),
    "lora.dropout": (0.0, 0.1),
    "lora.init": ("default", "pissa"),
    "lora.modules_to_save": ((), ("embed_tokens", "lm_head")),
}


def on(gpu: str, world: int = 1) -> Situation:
    model = gpus.find(gpu)
    return Situation.of(world, model.memory_bytes, model.title)


def asked(model: str, settings: dict[str, Any]) -> JobSpec:
    tree: dict[str, Any] = {"model": {"path": model}}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    return convert(tree, where="test")


def answer(model: str, settings: dict[str, Any], situation: Situation) -> Candidate | UsageError:
    try:
        return choose(asked(model, settings), model_of(model, MODELS[model]), situation)[0]
    except UsageError as error:
        return error


def applied(change: str, settings: dict[str, Any], situation: Situation) -> tuple[dict[str, Any], Situation]:
    """What a user would do who reads it."""
    settings = dict(settings)
    for key, value in re.findall(r"(\w+\.\w+): (\w+)", change):
        settings[key] = {"true": True}.get(value, int(value) if value.isdigit() else value)
    if more := re.search(r"(\d+) GPUs like this one", change):
        situation = replace(situation, world_size=int(more[1]))
    if bigger := re.search(r"a GPU of \d+ GiB \((.*)\)", change):
        card = next(card for card in gpus.GPUS.values() if card.title == bigger[1])
        situation = Situation.of(situation.world_size, card.memory_bytes, card.title)
    return settings, situation


def rendered(model: str, settings: dict[str, Any], situation: Situation, place: Path) -> TrainConfig:
    """train.json as the training program reads it, and ds_config.json, which names the same batch."""
    run = make(
        *(f"{key}={json.dumps(value)}" for key, value in settings.items()), device="cuda",
        tree={"model.path": model, "train.global_batch_size": "auto"},
        hosts=(("h", situation.world_size),), gpu_memory_bytes=situation.gpu_memory_bytes,
        gpu_name=situation.gpu_name, compute_capability=situation.compute_capability, model_config=MODELS[model],
    )  # fmt: skip
    files = texts.render(run)
    (place / "train.json").write_text(files["train.json"])
    config = load(place / "train.json")
    numbers = config.train
    if numbers.zero_stage:
        batch = json.loads(files["ds_config.json"])
        assert batch["train_batch_size"] == numbers.global_batch_size
        assert batch["train_micro_batch_size_per_gpu"] == numbers.micro_batch_size
        assert batch["gradient_accumulation_steps"] == numbers.gradient_accumulation_steps
    return config


def sample(count: int) -> list[tuple[str, dict[str, Any], Situation]]:
    rng, found = random.Random(3407), []
    for _ in range(count):
        often = rng.random()  # few settings given in some jobs, many in others
        settings = {key: rng.choice(values) for key, values in AXES.items() if rng.random() < often}
        card = gpus.GPUS[rng.choice(list(gpus.GPUS))]
        size = rng.choice((card.memory_bytes, card.memory_bytes, 6 * GIB, 192 * GIB))
        found.append((rng.choice(list(MODELS)), settings, Situation.of(rng.choice((1, 2, 8, 3)), size, card.title)))
    return found

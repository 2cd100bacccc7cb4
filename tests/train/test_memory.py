"""The arithmetic of memory and work, against known models and against measured peaks."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from train import memory
from train.memory import GIB, SHAPES, MemoryCase, Shape, predict

KNOWN = {  # parameters as the models' own cards and checkpoints count them
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "qwen3-0.6b": 596_049_920,
    "mistral-7b": 7_248_023_552,
    "llama2-7b": 6_738_415_616,
    "baichuan2-7b": 7_505_973_248,
    "glm2-6b": 6_243_584_000,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_of_known_models_are_counted_exactly(name: str) -> None:
    # ChatGLM counts its rotary table as a parameter: 32 numbers
    assert SHAPES[name].parameters == pytest.approx(KNOWN[name], abs=32)


def test_lora_weights_are_counted_exactly() -> None:
    assert memory.lora_parameters(SHAPES["llama3-8b"], 16) == 41_943_040
    assert memory.lora_parameters(SHAPES["llama3-8b"], 8, ("q_proj", "v_proj")) == 3_407_872
    assert memory.lora_parameters(SHAPES["glm2-6b"], 8, ("query_key_value",)) > 0


def test_shapes_come_from_config_json_of_every_family() -> None:
    llama = {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    }  # fmt: skip
    assert memory.from_config(llama) == SHAPES["llama3-8b"]
    chatglm = {
        "model_type": "chatglm", "num_layers": 28, "hidden_size": 4096, "ffn_hidden_size": 13696, "kv_channels": 128,
        "num_attention_heads": 32, "multi_query_attention": True, "multi_query_group_num": 2,
        "padded_vocab_size": 65024, "add_qkv_bias": True,
    }  # fmt: skip
    assert replace(memory.from_config(chatglm), family="glm") == SHAPES["glm2-6b"]
    assert memory.from_config({"text_config": llama}) == SHAPES["llama3-8b"]
    qwen3 = {**llama, "model_type": "qwen3", "head_dim": 128, "tie_word_embeddings": True}
    assert memory.from_config(qwen3).qk_norm
    assert memory.from_config(qwen3).tied
    with pytest.raises(memory.UnknownShape, match="num_hidden_layers"):
        memory.from_config({"hidden_size": 8})
    with pytest.raises(memory.UnknownShape, match="experts"):
        memory.from_config({**llama, "num_experts": 64})


_MOE: dict[str, Any] = {"num_experts": 128, "num_experts_per_tok": 8, "num_key_value_heads": 4, "head_dim": 128}
_DEEPSEEK: dict[str, Any] = {
    "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
    "num_attention_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280, "model_type": "deepseek_v3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [
        (
            {**_MOE, "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
             "num_attention_heads": 32, "moe_intermediate_size": 768, "vocab_size": 151936},
            30.5, 3.3,
        ),
        (
            {**_MOE, "model_type": "qwen3_moe", "hidden_size": 4096, "intermediate_size": 12288,
             "num_hidden_layers": 94, "num_attention_heads": 64, "moe_intermediate_size": 1536, "vocab_size": 151936},
            235, 22,
        ),
        (
            {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
             "vocab_size": 32000},
            46.7, 12.9,
        ),
        (
            {"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
             "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32,
             "num_experts_per_tok": 4, "vocab_size": 201088},
            20.9, 4.2,  # 3.6 without the embedding
        ),
        (_DEEPSEEK, 671, 37.5),
        (
            {"model_type": "glm4_moe", "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 46,
             "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "n_routed_experts": 128,
             "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 1408,
             "first_k_dense_replace": 1, "vocab_size": 151552, "attention_bias": True},
            106.9, 13,
        ),
        (
            {"text_config": {"model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192,
             "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_attention_heads": 40,
             "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 16, "num_experts_per_tok": 1,
             "interleave_moe_layer_step": 1, "vocab_size": 202048}},
            107.8, 17.2,
        ),
    ],
    ids=["qwen3-30b-a3b", "qwen3-235b-a22b", "mixtral-8x7b", "gpt-oss-20b", "deepseek-v3", "glm-4.5-air", "scout"],
)  # fmt: skip
def test_mixtures_of_experts_have_the_parameters_that_their_makers_say(
    config: dict[str, Any], billions: float, active: float
) -> None:
    shape = memory.from_config(config)
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.active_parameters / 1e9 == pytest.approx(active, rel=0.04)


def test_an_adapter_on_experts_is_counted_for_each_of_them() -> None:
    shape = memory.from_config(
        {**_MOE, "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "moe_intermediate_size": 32, "vocab_size": 100}
    )  # fmt: skip
    attention = 2 * 4 * ((64 + 512) + 2 * (64 + 512) + (512 + 64))
    experts = 2 * 128 * 4 * ((64 + 2 * 32) + (32 + 64))
    assert memory.lora_parameters(shape, 4) == attention + experts
    assert memory.lora_parameters(shape, 4, memory.ATTENTION) == attention
    assert memory.lora_parameters(shape, 4, ("down_proj",)) == 2 * 128 * 4 * (32 + 64)


@pytest.mark.parametrize(
    "name", ["meta-llama/Llama-3.1-8B-Instruct", "llama3-8b", "8b", "Qwen/Qwen3-8B", "THUDM/chatglm2-6b"]
)
def test_models_are_known_by_the_names_people_use(name: str) -> None:
    assert memory.named(name) is not None
    assert memory.named("somebody/own-model") is None


def peak(**changes: object) -> int:
    return predict(SHAPES["llama3-8b"], replace(MemoryCase(tokens=8192, sequence=2048), **changes)).total  # type: ignore[arg-type]


def test_every_saving_saves_and_every_load_costs() -> None:
    assert peak(checkpointing=True) < peak()
    assert peak(quantization="nf4") < peak(quantization="int8") < peak()
    assert peak(tokens=4096) < peak() < peak(tokens=16384)
    assert peak(lora_r=64) > peak()
    assert peak(engine="fused") < peak(engine="unsloth") < peak(engine="peft")
    assert peak(zero_stage=3, world_size=8) < peak(zero_stage=2, world_size=8)


MEASURED = [  # GiB on an H200, torch 2.11, Llama-3.1-8B shape, LoRA r=16 on all projections (docs/performance.md)
    (MemoryCase(tokens=8192, sequence=2048), 39.37),
    (MemoryCase(tokens=16384, sequence=8192), 62.85),
    (MemoryCase(tokens=16384, sequence=8192, checkpointing=True), 22.10),
    (MemoryCase(tokens=15872, sequence=512), 61.25),
    (MemoryCase(tokens=16896, sequence=512), 64.56),
    (MemoryCase(tokens=17152, sequence=512), 65.29),
    (MemoryCase(tokens=15872, sequence=512, quantization="nf4"), 51.57),
    (MemoryCase(tokens=8192, sequence=2048, zero_stage=2), 40.46),
    (MemoryCase(tokens=8192, sequence=2048, engine="unsloth"), 46.53),
    (MemoryCase(tokens=16384, sequence=4096, engine="unsloth"), 75.8),
    (MemoryCase(tokens=8192, sequence=2048, engine="unsloth", checkpointing=True), 17.7),
    (MemoryCase(tokens=8192, sequence=2048, engine="unsloth", checkpointing=True, quantization="nf4"), 8.1),
    (MemoryCase(tokens=8192, sequence=2048, engine="peft", checkpointing=True), 20.06),
]


@pytest.mark.parametrize(("setting", "gib"), MEASURED)
def test_predicted_peaks_are_within_a_tenth_of_the_measured_and_never_three_hundredths_below(
    setting: MemoryCase, gib: float
) -> None:
    ratio = predict(SHAPES["llama3-8b"], setting).total / GIB / gib
    assert 0.97 <= ratio <= 1.10


TABLE = {  # `python -m tests.bench.gpu memory` on an H100, 25 November 2026: GiB
    "workload=dense:8x512 shape=llama3.2-1b": 6.2,
    "workload=dense:2x2048 shape=llama3.2-1b checkpointing=True": 3.3,
    "workload=dense:8x512 shape=llama3.2-1b quantization=nf4": 4.81,
    "workload=dense:2x2048 shape=llama3.2-1b quantization=nf4 checkpointing=True": 1.91,
    "workload=dense:1x8192 shape=llama3.2-1b": 9.41,
    "workload=dense:8x512 shape=qwen3-4b": 19.55,
    "workload=dense:2x2048 shape=qwen3-4b checkpointing=True": 9.27,
    "workload=dense:8x512 shape=qwen3-4b quantization=nf4": 14.55,
    "workload=dense:2x2048 shape=qwen3-4b quantization=nf4 checkpointing=True": 4.28,
    "workload=dense:1x8192 shape=qwen3-4b": 30.64,
    "workload=dense:8x512": 27.7,
    "workload=dense:2x2048 checkpointing=True": 17.23,
    "workload=dense:8x512 quantization=nf4": 18.04,
    "workload=dense:2x2048 quantization=nf4 checkpointing=True": 7.58,
    "workload=dense:1x8192": 39.35,
    "workload=dense:8x512 shape=qwen2.5-14b": 47.57,
    "workload=dense:2x2048 shape=qwen2.5-14b checkpointing=True": 31.14,
    "workload=dense:8x512 shape=qwen2.5-14b quantization=nf4": 29.32,
    "workload=dense:2x2048 shape=qwen2.5-14b quantization=nf4 checkpointing=True": 12.91,
    "workload=dense:1x8192 shape=qwen2.5-14b": 66.2,
    "workload=dense:2x2048 shape=llama3.2-1b zero=2": 7.49,
    "workload=dense:2x2048 shape=qwen3-4b zero=2": 20.96,
    "workload=dense:2x2048 zero=2": 29.02,
    "engine=peft workload=dense:2x1024 shape=llama3.2-1b zero=3": 7.99,
    "engine=peft workload=dense:2x1024 shape=qwen3-4b zero=3": 21.06,
}


def test_the_table_equals_that_of_the_benchmark() -> None:
    cases = pytest.importorskip("tests.bench.gpu.cases")
    names = [replace(case, steps=6, warmup=2).name for case in cases.memory_cases()]
    assert sorted(names) == sorted(TABLE)


@pytest.mark.parametrize(("words", "gib"), TABLE.items())
def test_predictions_hold_from_1b_to_14b_with_nf4_checkpointing_and_zero(words: str, gib: float) -> None:
    given = dict(word.split("=") for word in words.split())
    rows, length = map(int, given["workload"].removeprefix("dense:").split("x"))
    setting = MemoryCase(
        tokens=rows * length,
        sequence=length,
        engine=given.get("engine", "fused"),  # type: ignore[arg-type]
        quantization=given.get("quantization", "none"),  # type: ignore[arg-type]
        checkpointing="checkpointing" in given,
        zero_stage=int(given.get("zero", 0)),
    )
    ratio = predict(SHAPES[given.get("shape", "llama3-8b")], setting).total / GIB / gib
    assert 0.97 <= ratio <= 1.10


def test_the_parts_are_the_whole() -> None:
    made = predict(SHAPES["qwen3-14b"], MemoryCase(tokens=4096, sequence=4096, zero_stage=2, world_size=4))
    assert sum(made.parts.values()) == made.total
    assert all(size >= 0 for size in made.parts.values())


def test_work_a_token_is_four_operations_a_weight_and_the_attention() -> None:
    shape, setting = SHAPES["llama3-8b"], MemoryCase(tokens=8192, sequence=2048)
    assert memory.flops_per_token(shape, setting) == pytest.approx(32.2e9, rel=0.02)
    again = memory.flops_per_token(shape, replace(setting, checkpointing=True))
    assert 1.4 < again / memory.flops_per_token(shape, setting) < 1.55


def test_nothing_but_the_standard_library_is_imported() -> None:
    import subprocess

    heavy = "{'torch', 'numpy', 'msgspec'}"
    code = f"import sys, train.memory; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_shape_of_ones_own_needs_no_name() -> None:
    tiny = Shape(2, 64, 128, 4, 2, 16, 300)
    assert predict(tiny, MemoryCase(tokens=64, sequence=64)).total < GIB


def test_modules_trained_whole_and_float32_are_counted() -> None:
    shape = SHAPES["llama3-8b"]
    assert memory.trainable(shape, 16, ("q_proj",), ("lm_head", "embed_tokens", "norm")) == (
        memory.lora_parameters(shape, 16, ("q_proj",)) + 2 * shape.vocab * shape.hidden
    )
    assert memory.trainable(shape, 1, (), ("q_proj",)) == shape.layers * shape.hidden * shape.q_width
    assert peak(whole=("lm_head",)) - peak() == 16 * shape.vocab * shape.hidden  # itself, gradient, two moments
    half, full = (
        predict(shape, MemoryCase(tokens=8192, sequence=2048, engine="peft", weight_bytes=size)) for size in (2, 4)
    )
    assert full.weights == 2 * half.weights
    assert full.activations == 2 * half.activations


@pytest.mark.parametrize("engine", ["fused", "unsloth", "peft"])
@pytest.mark.parametrize("name", SHAPES)
def test_longer_records_and_fewer_gpus_never_need_less(name: str, engine: memory.EngineName) -> None:
    for stage in (0, 2, 3):
        for checkpointing in (False, True):
            setting = MemoryCase(2048, 2048, engine, checkpointing=checkpointing, zero_stage=stage)
            lengths = [
                predict(SHAPES[name], replace(setting, tokens=size, sequence=size)).total
                for size in (128, 300, 2048, 8192, 32768)
            ]
            assert lengths == sorted(lengths)
            ranks = [predict(SHAPES[name], replace(setting, world_size=world)).total for world in (1, 2, 3, 8, 64)]
            assert ranks == sorted(ranks, reverse=True)
            nf4 = predict(SHAPES[name], replace(setting, quantization="nf4")).total
            assert nf4 <= predict(SHAPES[name], setting).total

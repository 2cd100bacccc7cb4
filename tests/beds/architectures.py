"""One tiny random checkpoint per architecture that people train this year, from the config classes of transformers.

The text part of every row has two to four layers of width 48; mixtures have four experts, two of which are active.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.beds.models import CHATML, SHAPE, tokenizer_at

_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
}
_DELTA: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_hidden_layers": 4,
}
_GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 6,
    "sliding_window": 16,
    "vocab_size_per_layer_input": 700,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 16,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Row:
    """A checkpoint: the class of its configuration, and what differs from SHAPE."""

    config: str
    shape: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] | None = None
    """The vision part of a multimodal checkpoint, whose text part has `shape`."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of a multimodal checkpoint."""

    @property
    def mixture(self) -> bool:
        return any("expert" in key for key in self.shape)


ROWS: dict[str, Row] = {
    "llama3": Row("LlamaConfig"),
    "llama4-text": Row("Llama4TextConfig", {"num_local_experts": 4, "intermediate_size_mlp": 64}),
    "llama4": Row(
        "Llama4Config",
        {"num_local_experts": 4, "intermediate_size_mlp": 64},
        {
            **_VISION,
            "intermediate_size": 128,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
    ),
    "qwen2.5": Row("Qwen2Config"),
    "qwen2-moe": Row("Qwen2MoeConfig", {**_EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen2.5-vl": Row(
        "Qwen2_5_VLConfig",
        {
            "head_dim": 12,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
        },
        {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 48},
    ),
    "qwen3": Row("Qwen3Config", {"tie_word_embeddings": True}),
    "qwen3-moe": Row("Qwen3MoeConfig", _EXPERTS),
    "qwen3-vl": Row(
        "Qwen3VLConfig",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
        {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 48,
            "deepstack_visual_indexes": [0],
        },
    ),
    "qwen3-next": Row("Qwen3NextConfig", {**_EXPERTS, **_DELTA, "shared_expert_intermediate_size": 32}),
    "qwen3.5-text": Row("Qwen3_5TextConfig", _DELTA),
    "qwen3.5": Row(
        "Qwen3_5Config",
        _DELTA,
        {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 48},
    ),
    "qwen3.5-moe": Row("Qwen3_5MoeTextConfig", {**_EXPERTS, **_DELTA, "shared_expert_intermediate_size": 32}),
    "qwen3.5-moe-sees": Row(
        "Qwen3_5MoeConfig",
        {**_EXPERTS, **_DELTA, "shared_expert_intermediate_size": 32},
        {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 48},
    ),
    "gemma2": Row("Gemma2Config"),
    "gemma3-text": Row("Gemma3TextConfig", {"num_hidden_layers": 6, "sliding_window": 16}),
    "gemma3": Row("Gemma3Config", {"num_hidden_layers": 6, "sliding_window": 16}, _VISION),
    "gemma4-text": Row("Gemma4TextConfig", _GEMMA4),
    "gemma4": Row("Gemma4Config", _GEMMA4, _VISION),
    "gemma4-moe": Row(
        "Gemma4TextConfig",
        {**_GEMMA4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    ),
    "phi4": Row("Phi3Config"),
    "mistral": Row("MistralConfig", {"sliding_window": None}),
    "mistral-window": Row("MistralConfig", {"sliding_window": 16}),
    "ministral": Row("MinistralConfig", {"sliding_window": 16}),
    "ministral3": Row("Ministral3Config"),
    "mistral3": Row("Mistral3Config", {"model_type": "mistral"}, {**_VISION, "model_type": "pixtral"}),
    "mixtral": Row("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "glm4": Row("GlmConfig"),
    "glm4-0414": Row("Glm4Config"),
    "glm4.5-air": Row("Glm4MoeConfig", _ROUTED),
    "glm4.7-flash": Row("Glm4MoeLiteConfig", {**_ROUTED, **_LATENT}),
    "gpt-oss": Row("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
    "gpt-oss-wide": Row(
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64, "sliding_window": 16},
    ),
    "deepseek-v2": Row("DeepseekV2Config", {**_ROUTED, **_LATENT, "n_shared_experts": 1}),
    "deepseek-v3": Row("DeepseekV3Config", {**_ROUTED, **_LATENT, "n_shared_experts": 1}),
    "smollm3": Row("SmolLM3Config", {"num_hidden_layers": 4}),
    "granite": Row("GraniteConfig", {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22}),
    "granite-moe": Row("GraniteMoeConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite4": Row(
        "GraniteMoeHybridConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 6,
            "mamba_d_state": 16,
            "mamba_chunk_size": 16,
        },
    ),
    "hunyuan": Row("HunYuanDenseV1Config"),
    "hunyuan-moe": Row("HunYuanMoEV1Config", {"num_experts": 4, "moe_topk": 2}),
    "ernie4.5": Row("Ernie4_5Config"),
    "ernie4.5-moe": Row("Ernie4_5_MoeConfig", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32}),
    "seed-oss": Row("SeedOssConfig"),
    "cohere": Row("CohereConfig"),
    "cohere2": Row("Cohere2Config", {"num_hidden_layers": 4, "sliding_window": 16}),
    "olmo3": Row("Olmo3Config", {"num_hidden_layers": 4, "sliding_window": 16}),
    "exaone4": Row("Exaone4Config", {"num_hidden_layers": 4, "sliding_window": 16}),
    "lfm2": Row("Lfm2Config", {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]}),
    "gpt-neox": Row("GPTNeoXConfig"),
}


def make(name: str, place: Path) -> Path:
    """Write the checkpoint of a row into `place`, with a tokenizer that all rows share."""
    import torch
    import transformers

    row = ROWS[name]
    shared, specials = place.parent / "tokenizer", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = tokenizer_at(shared, specials, "<|im_end|>", CHATML)
    shutil.copytree(shared, place)
    ends = {"bos_token_id": 0, "pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    text = {**SHAPE, "vocab_size": len(tokenizer), **ends, **row.shape}
    kind = getattr(transformers, row.config)
    torch.manual_seed(0)
    if row.vision is None:
        transformers.AutoModelForCausalLM.from_config(kind(**text)).save_pretrained(place)
    else:
        config = kind(text_config=text, vision_config=dict(row.vision), **row.more)
        transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(place)
    return place


def pack_in_mxfp4(place: Path) -> None:
    """Replace the experts of a checkpoint of gpt-oss by random ones in MXFP4, as it is published."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    tensors, generator = load_file(place / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, rows, columns = tensors.pop(name).shape
        blocks, scales = (experts, columns, rows // 32, 16), (experts, columns, rows // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, blocks, generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 122, scales, generator=generator, dtype=torch.uint8)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config |= {"dtype": "bfloat16", "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": kept}}
    (place / "config.json").write_text(json.dumps(config))

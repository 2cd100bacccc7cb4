"""Small checkpoints in the original layouts of ChatGLM2/3 and Baichuan, and their forward passes in plain torch.

The forward passes follow the published architectures (the model cards, the GLM and ALiBi papers). They share nothing
with the converter or with transformers, and use the original tensors by their original names.
"""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

CHINESE = (
    "深度学习模型在许多任务上表现出色今天天气很好我们一起去公园散步电影情节紧凑演员演技自然值得推荐"
    "请把下面的句子翻译成英文北京是中国的首都人工智能正在改变世界价格便宜质量也不错就是物流慢了一点问答"
)
_WORDS = """the quick brown fox jumps over lazy dogs hello world training attention is all you need sophisticated shop
people language neural network gradient descent loss sop eop Round"""
ENGLISH = _WORDS.split()


def sentence(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return "".join(rng.choice(CHINESE) for _ in range(rng.randint(4, 30))) + rng.choice("。！？，：")
    return " ".join(rng.choice(ENGLISH) for _ in range(rng.randint(2, 14)))


def varied_strings(count: int, seed: int = 7) -> list[str]:
    """Sentences, and mixtures of what tokenizers often get wrong."""
    rng = random.Random(seed)
    odd = [*CHINESE, *" abcXYZ0123456789.,!?，。：", "😀", "👩‍💻", "é", "ß", "한국", "ж"]
    odd += ["\u3000", "\t", "\n", "\n\n", "  ", "    "]
    fixed = ["", " ", "\n", "  two  spaces ", "sophisticated sop eop", "trailing \n", "１２３ wide", "a\r\nb", "▁"]
    mixed = ["".join(rng.choice([*odd, *ENGLISH]) for _ in range(rng.randint(1, 40))) for _ in range(count // 2)]
    return [*fixed, *mixed, *(sentence(rng) for _ in range(count - len(fixed) - len(mixed)))]


def sentencepiece_model(**options: Any) -> bytes:
    """A BPE model trained on the spot: byte fallback, no normalization, like those of ChatGLM and Baichuan."""
    rng = random.Random(3)
    out = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 900,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.9995,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([sentence(rng) for _ in range(2000)]), model_writer=out, **(settings | options)
    )
    return out.getvalue()


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator) * (0.15 if len(shape) > 1 else 0.1)
        made[name] = (value + ("norm" in name)).to(dtype)
    return made


def write(
    root: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    vocabulary: bytes,
    *,
    layout: str = "bin",
    shards: int = 3,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """A checkpoint directory: `layout` is bin or safetensors. One shard has no index, as in published models."""
    root.mkdir(parents=True)
    (root / "config.json").write_text(json.dumps(config), "utf-8")
    (root / "tokenizer.model").write_bytes(vocabulary)
    for name, content in (extra or {}).items():
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    stem, suffix = ("pytorch_model", "bin") if layout == "bin" else ("model", "safetensors")
    names = list(tensors)
    places = {}
    for number in range(shards):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}"
        part = {name: tensors[name] for name in names[number::shards]}
        places |= dict.fromkeys(part, file)
        if layout == "bin":
            torch.save(part, root / file)
        else:
            save_file(part, root / file)
    if shards > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places}
        (root / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), "utf-8")
    return root


# ---------------------------------------------------------------- ChatGLM2 and 3


def chatglm_config(vocab: int, **changes: Any) -> dict[str, Any]:
    return {
        "_name_or_path": "THUDM/chatglm2-6b",
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_residual_connection_post_layernorm": False,
        "ffn_hidden_size": 56,
        "hidden_size": 48,
        "kv_channels": 16,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 4,
        "num_layers": 2,
        "original_rope": True,
        "padded_vocab_size": vocab,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 128,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": 2,
        "pad_token_id": 0,
    } | changes


def chatglm_tensors(config: Mapping[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    hidden, inner, vocab = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    queries = config["num_attention_heads"] * config["kv_channels"]
    packed = queries + 2 * config["multi_query_group_num"] * config["kv_channels"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.embedding.word_embeddings.weight": (vocab, hidden)}
    for n in range(config["num_layers"]):
        at = f"transformer.encoder.layers.{n}"
        shapes |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.self_attention.query_key_value.weight": (packed, hidden),
            f"{at}.self_attention.query_key_value.bias": (packed,),
            f"{at}.self_attention.dense.weight": (hidden, queries),
            f"{at}.post_attention_layernorm.weight": (hidden,),
            f"{at}.mlp.dense_h_to_4h.weight": (2 * inner, hidden),
            f"{at}.mlp.dense_4h_to_h.weight": (hidden, inner),
        }
    shapes |= {"transformer.encoder.final_layernorm.weight": (hidden,)}
    shapes |= {"transformer.output_layer.weight": (vocab, hidden)}
    rotary = {"transformer.rotary_pos_emb.inv_freq": torch.ones(config["kv_channels"] // 4, dtype=dtype)}
    return random_tensors(shapes, seed, dtype) | rotary


def chatglm_forward(weights: Tensors, config: Mapping[str, Any], ids: torch.Tensor, theta: float = 1e4) -> torch.Tensor:
    """Logits [batch, length, vocabulary] of ChatGLM2/3: pre-RMSNorm, interleaved rotary embedding on half of each head,
    grouped queries, SwiGLU, biases only for q, k and v."""
    heads, groups, dim = config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]
    batch, length = ids.shape
    x = weights["transformer.embedding.word_embeddings.weight"][ids]
    angles = torch.arange(length).float()[:, None] * (1 / theta ** (torch.arange(0, dim // 2, 2).float() / (dim // 2)))
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]

    def turned(t: torch.Tensor) -> torch.Tensor:
        first, rest = t[..., : dim // 2], t[..., dim // 2 :]
        even, odd = first[..., 0::2], first[..., 1::2]
        pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
        return torch.cat([pairs.flatten(-2), rest], -1)

    for n in range(config["num_layers"]):
        at = f"transformer.encoder.layers.{n}"
        y = rms(x, weights[f"{at}.input_layernorm.weight"], config["layernorm_epsilon"])
        qkv = y @ weights[f"{at}.self_attention.query_key_value.weight"].T
        qkv = qkv + weights[f"{at}.self_attention.query_key_value.bias"]
        q, k, v = qkv.split([heads * dim, groups * dim, groups * dim], -1)
        q, k = turned(q.view(batch, length, heads, dim)), turned(k.view(batch, length, groups, dim))
        k = k.repeat_interleave(heads // groups, 2)
        v = v.view(batch, length, groups, dim).repeat_interleave(heads // groups, 2)
        y = attend(q, k, v, torch.ones(length, length).tril().log())
        x = x + y.flatten(2) @ weights[f"{at}.self_attention.dense.weight"].T
        y = rms(x, weights[f"{at}.post_attention_layernorm.weight"], config["layernorm_epsilon"])
        gate, up = (y @ weights[f"{at}.mlp.dense_h_to_4h.weight"].T).chunk(2, -1)
        x = x + (torch.nn.functional.silu(gate) * up) @ weights[f"{at}.mlp.dense_4h_to_h.weight"].T
    x = rms(x, weights["transformer.encoder.final_layernorm.weight"], config["layernorm_epsilon"])
    return x @ weights["transformer.output_layer.weight"].T


# ---------------------------------------------------------------- Baichuan and Baichuan2


def baichuan_config(vocab: int, *, alibi: bool = False, second: bool = False, **changes: Any) -> dict[str, Any]:
    config = {
        "architectures": ["BaichuanForCausalLM" if alibi or second else "BaiChuanForCausalLM"],
        "model_type": "baichuan",
        "vocab_size": vocab,
        "hidden_size": 48,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,  # not a power of two: the slopes of ALiBi interleave, as with 40 heads
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "model_max_length": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "gradient_checkpointing": False,
    }
    config |= {} if alibi else {"max_position_embeddings": 128}
    config |= {"z_loss_weight": 0} if second else {}
    return config | changes


def baichuan_tensors(config: Mapping[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    rotary: Tensors = {}
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}"
        shapes |= {
            f"{at}.self_attn.W_pack.weight": (3 * hidden, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, hidden),
            f"{at}.mlp.gate_proj.weight": (inner, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, inner),
            f"{at}.mlp.up_proj.weight": (inner, hidden),
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }
        if "max_position_embeddings" in config:
            rotary[f"{at}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    return random_tensors(shapes, seed, dtype) | rotary


def baichuan_forward(
    weights: Tensors, config: Mapping[str, Any], ids: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits [batch, length, vocabulary]: Llama with packed q, k, v; rotary embedding in halves, or ALiBi. Baichuan2
    normalizes the rows of the head at every forward pass. `mask` [batch, length]: 0 for padding (ALiBi only)."""
    heads = config["num_attention_heads"]
    hidden, eps = config["hidden_size"], config["rms_norm_eps"]
    dim = hidden // heads
    batch, length = ids.shape
    bias = torch.ones(length, length).tril().log().expand(batch, heads, length, length)
    rotary = "max_position_embeddings" in config
    if not rotary:
        slope = torch.tensor(published_slopes(heads))[:, None, None]
        bias = bias + slope * torch.arange(length).float()  # by key place: softmax forgets what all keys share
    if mask is not None:
        bias = bias.masked_fill(mask[:, None, None, :] == 0, -1e30)
    angles = torch.arange(length).float()[:, None] * (1 / 1e4 ** (torch.arange(0, dim, 2).float() / dim))
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]

    def turned(t: torch.Tensor) -> torch.Tensor:
        a, b = t.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1) if rotary else t

    x = weights["model.embed_tokens.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}"
        y = rms(x, weights[f"{at}.input_layernorm.weight"], eps) @ weights[f"{at}.self_attn.W_pack.weight"].T
        q, k, v = y.view(batch, length, 3, heads, dim).unbind(2)
        y = attend(turned(q), turned(k), v, bias).flatten(2)
        x = x + y @ weights[f"{at}.self_attn.o_proj.weight"].T
        y = rms(x, weights[f"{at}.post_attention_layernorm.weight"], eps)
        gate = torch.nn.functional.silu(y @ weights[f"{at}.mlp.gate_proj.weight"].T)
        up = y @ weights[f"{at}.mlp.up_proj.weight"].T
        x = x + (gate * up) @ weights[f"{at}.mlp.down_proj.weight"].T
    head = weights["lm_head.weight"]
    if "z_loss_weight" in config:
        head = head / head.norm(dim=-1, keepdim=True)
    return rms(x, weights["model.norm.weight"], eps) @ head.T


def published_slopes(heads: int) -> list[float]:
    """Slopes of the ALiBi paper's reference: 2^(-8/n) and its powers; others interleaved from twice as many heads."""
    n = 2 ** int(math.log2(heads))
    whole = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    double = [2 ** (-8 * (i + 1) / (2 * n)) for i in range(2 * n)]
    return whole + double[0::2][: heads - n]


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Compute in float32 for any type of x, as the originals do."""
    y = x.float()
    return weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Softmax attention of [batch, length, heads, dim]; `bias` is added to the scores."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1]) + bias
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)

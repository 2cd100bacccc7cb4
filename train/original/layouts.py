"""The original layouts of ChatGLM2/3 and Baichuan, and the weights, config and tokenizer that each becomes.

Weights are renamed and split but not computed, except Baichuan2's normalized head, which is constant after training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken, processors
from transformers import GlmConfig, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from train import families
from train.original import alibi
from train.original.checkpoint_files import ConversionError, Source, Tensors
from train.original.sentencepiece_bpe import SentencePiece, tokenizer

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recipe:
    """How to convert one family's checkpoints."""

    family: families.Family
    config: PreTrainedConfig
    shapes: Shapes
    """Every tensor of the result."""
    rename: Callable[[str, torch.Tensor], Tensors]
    """Map an original tensor to its tensors in the result (none for a buffer). KeyError: another architecture."""


def recipe_for(source: Source) -> Recipe:
    """Find how to convert this checkpoint. Raises ConversionError if its family or variant has no converter."""
    config = source.config
    if not families.needs_conversion(config):
        kind = config.get("architectures") or config.get("model_type")
        raise ConversionError(
            f"{source.root}: {kind} has no converter or needs none; there are converters for ChatGLM2/3 and Baichuan"
        )
    if config.get("quantization_bit") or config.get("quantization_config"):
        raise ConversionError(f"{source.root}: already quantized; use the 16-bit checkpoint and quantize in the job")
    make = _LAYOUTS[str(families.family_of(config).converter)]
    try:
        return make(source)
    except KeyError as error:
        raise ConversionError(f"{source.root / 'config.json'}: lacks {error.args[0]}") from None


def _chatglm(source: Source) -> Recipe:
    config = source.config
    if "multi_query_attention" not in config:
        raise ConversionError(f"{source.root}: the first ChatGLM-6B has no converter; use ChatGLM2 or 3")
    if config["padded_vocab_size"] > 100_000:
        raise ConversionError(f"{source.root}: GLM-4 in its old layout; use the repository whose name ends in -hf")
    expected: dict[str, bool | None] = {"rmsnorm": True, "post_layer_norm": True, "add_bias_linear": False}
    expected |= {"original_rope": True, "apply_residual_connection_post_layernorm": False, "pre_seq_len": None}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ConversionError(f"{source.root / 'config.json'}: {key} = {config[key]!r} does not fit ChatGLM2/3")
    family = chatglm_version(source)
    heads, dim, hidden = config["num_attention_heads"], config["kv_channels"], config["hidden_size"]
    groups = config["multi_query_group_num"] if config["multi_query_attention"] else heads
    target = GlmConfig(
        vocab_size=config["padded_vocab_size"],
        hidden_size=hidden,
        intermediate_size=config["ffn_hidden_size"],
        num_hidden_layers=config["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=dim,
        hidden_act="silu",
        max_position_embeddings=config["seq_length"],
        rms_norm_eps=config["layernorm_epsilon"],
        attention_bias=bool(config.get("add_qkv_bias", True) or config.get("add_bias_linear")),
        tie_word_embeddings=False,
        rope_parameters=_chatglm_rope(source, family),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    target.architectures = ["GlmForCausalLM"]
    sizes = [heads * dim, groups * dim, groups * dim]

    def rename(name: str, tensor: torch.Tensor) -> Tensors:
        whole = CHATGLM_WHOLE.get(name)
        if whole:
            return {whole: tensor}
        if name.endswith("rotary_pos_emb.inv_freq"):
            return {}
        match = re.fullmatch(r"transformer\.encoder\.layers\.(\d+)\.(.+?)\.(weight|bias)", name)
        if match is None:
            raise KeyError(name)
        layer, part, kind = match.groups()
        if part == "self_attention.query_key_value":
            thirds = zip("qkv", tensor.split(sizes), strict=True)
            return {f"model.layers.{layer}.self_attn.{which}_proj.{kind}": rows for which, rows in thirds}
        return {f"model.layers.{layer}.{CHATGLM_PARTS[part]}.{kind}": tensor}

    return Recipe(family, target, _glm_shapes(target), rename)


CHATGLM_WHOLE = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
CHATGLM_PARTS = {
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}


def chatglm_version(source: Source) -> families.Family:
    """Tell ChatGLM2 from 3: weights and config keys have the same names, but only ChatGLM3 has role tokens."""
    marks = source.text("tokenization_chatglm.py") + source.text("tokenizer_config.json")
    names = f"{source.config.get('_name_or_path', '')} {source.root.resolve().name} {marks}".lower()
    is_third = "<|user|>" in marks or "chatglm3" in names
    return families.CHATGLM3 if is_third else families.CHATGLM2


def _chatglm_rope(source: Source, family: families.Family) -> dict[str, Any]:
    """Rotary parameters. By their code, 32k models of ChatGLM2 divide positions, those of ChatGLM3 raise the base."""
    ratio = float(source.config.get("rope_ratio", 1) or 1)
    program = source.text("modeling_chatglm.py")
    divides = "/ self.rope_ratio" in program if program else family is families.CHATGLM2
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    if ratio != 1 and divides:
        return rope | {"rope_type": "linear", "factor": ratio}
    return rope | {"rope_theta": 10000.0 * ratio}


def _baichuan(source: Source) -> Recipe:
    config = source.config
    family = families.family_of(config)
    shared: dict[str, Any] = {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"],
        "hidden_act": config.get("hidden_act", "silu"),
        "rms_norm_eps": config["rms_norm_eps"],
        "tie_word_embeddings": False,
        "bos_token_id": config.get("bos_token_id", 1),
        "eos_token_id": config.get("eos_token_id", 2),
        "pad_token_id": config.get("pad_token_id", 0),
    }
    if config.get("tie_word_embeddings"):
        raise ConversionError(f"{source.root / 'config.json'}: tie_word_embeddings does not fit Baichuan models")
    target: PreTrainedConfig
    if family is families.ALIBI:
        target = alibi.AlibiLlamaConfig(max_position_embeddings=config["model_max_length"], **shared)
        target.architectures = ["AlibiLlamaForCausalLM"]
        target.auto_map = {
            "AutoConfig": "alibi.AlibiLlamaConfig",
            "AutoModelForCausalLM": "alibi.AlibiLlamaForCausalLM",
        }
    else:
        target = LlamaConfig(max_position_embeddings=config["max_position_embeddings"], **shared)
        target.architectures = ["LlamaForCausalLM"]
    folds = normalized_head(source)

    def rename(name: str, tensor: torch.Tensor) -> Tensors:
        if name.endswith("rotary_emb.inv_freq"):
            return {}
        if name == "lm_head.weight" and folds:
            return {name: torch.nn.functional.normalize(tensor.float(), dim=-1).to(tensor.dtype)}
        match = re.fullmatch(r"(model\.layers\.\d+\.self_attn)\.W_pack\.weight", name)
        if match:
            thirds = zip("qkv", tensor.chunk(3), strict=True)
            return {f"{match[1]}.{which}_proj.weight": rows for which, rows in thirds}
        if not re.fullmatch(r"(model|lm_head)\..*weight", name):
            raise KeyError(name)
        return {name: tensor}

    return Recipe(family, target, _llama_shapes(target), rename)


def normalized_head(source: Source) -> bool:
    """Whether the head is Baichuan2's NormHead, which normalizes its rows in every forward pass."""
    program = source.text("modeling_baichuan.py")
    if program:
        return "NormHead" in program
    return "z_loss_weight" in source.config or source.config.get("vocab_size") == 125696


def _llama_shapes(config: Any) -> Shapes:
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = {f"self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
    layer |= {"mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden)}
    layer |= {"mlp.down_proj.weight": (hidden, inner)}
    return _with_layers(config, layer)


def _glm_shapes(config: Any) -> Shapes:
    hidden, inner = config.hidden_size, config.intermediate_size
    rows = {"q": config.num_attention_heads * config.head_dim}
    rows |= dict.fromkeys("kv", config.num_key_value_heads * config.head_dim)
    layer: Shapes = {f"self_attn.{p}_proj.weight": (n, hidden) for p, n in rows.items()}
    if config.attention_bias:
        layer |= {f"self_attn.{p}_proj.bias": (n,) for p, n in rows.items()}
    layer |= {"self_attn.o_proj.weight": (hidden, rows["q"])}
    layer |= {"mlp.gate_up_proj.weight": (2 * inner, hidden), "mlp.down_proj.weight": (hidden, inner)}
    return _with_layers(config, layer)


def _with_layers(config: Any, layer: Mapping[str, tuple[int, ...]]) -> Shapes:
    hidden, vocab = config.hidden_size, config.vocab_size
    norms: Shapes = {f"{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    layers = {
        f"model.layers.{n}.{name}": shape
        for n in range(config.num_hidden_layers)
        for name, shape in {**layer, **norms}.items()
    }
    ends: Shapes = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    return {**layers, **ends, "model.norm.weight": (hidden,)}


# The originals never read "sop" and "eop" from text. A fast tokenizer reads every added token from text and would split
# "sophisticated", so they get brackets here, as in GLM-4. The model sees ids, not names.
CHATGLM_SPECIALS = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
CHATGLM3_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def _chatglm_tokenizer(model: SentencePiece, source: Source, recipe: Recipe) -> PreTrainedTokenizerFast:
    fast = tokenizer(model)
    specials = CHATGLM_SPECIALS + (CHATGLM3_ROLES if recipe.family is families.CHATGLM3 else ())
    fast.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in specials])
    prefix = [(text, fast.token_to_id(text)) for text in ("[gMASK]", "<sop>")]
    fast.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", pair="[gMASK] <sop> $A $B", special_tokens=prefix
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=model.piece(model.bos_id),
        eos_token=model.piece(model.eos_id),
        unk_token=model.piece(model.unk_id),
        pad_token=model.piece(model.unk_id),  # the originals pad with id 0, which is <unk>
        padding_side="left",
        chat_template=recipe.family.chat_template,
        clean_up_tokenization_spaces=False,
    )


def _baichuan_tokenizer(model: SentencePiece, source: Source, recipe: Recipe) -> PreTrainedTokenizerFast:
    """The chat tokens are reserved pieces. generation_config.json names their ids: 195 and 196 in all models."""
    try:
        generation = json.loads(source.text("generation_config.json") or "{}")
    except ValueError as error:
        raise ConversionError(f"{source.root / 'generation_config.json'}: not valid JSON ({error})") from None
    ids = [generation.get("user_token_id", 195), generation.get("assistant_token_id", 196)]
    if max(ids) >= len(model.pieces):
        raise ConversionError(f"{source.root / 'tokenizer.model'}: lacks the chat tokens {ids}")
    user, assistant = (model.piece(token_id) for token_id in ids)
    fast = tokenizer(model)
    fast.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in (user, assistant)])
    template = str(recipe.family.chat_template).replace("<USER>", user).replace("<ASSISTANT>", assistant)
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=model.piece(model.bos_id),
        eos_token=model.piece(model.eos_id),
        unk_token=model.piece(model.unk_id),
        pad_token=model.piece(recipe.config.pad_token_id),
        padding_side="left",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


_LAYOUTS = {"chatglm": _chatglm, "baichuan": _baichuan}
_TOKENIZERS = {"chatglm": _chatglm_tokenizer, "baichuan": _baichuan_tokenizer}


def tokenizer_for(model: SentencePiece, source: Source, recipe: Recipe) -> PreTrainedTokenizerFast:
    """Build the family's tokenizer: ids of sentencepiece, special tokens and chat format of the original.

    Raises NotSentencePiece, or ConversionError if the vocabulary and the model do not belong together.
    """
    return _TOKENIZERS[str(recipe.family.converter)](model, source, recipe)

"""Predict bytes on the GPU and FLOPs per token from a model's shape. The launcher imports this, so nothing heavy.

    config.json -> Shape;   Shape + MemoryCase -> Memory (bytes by part);   Shape + MemoryCase -> FLOPs per token

A training step reaches its peak either at the end of the forward pass (everything saved for the backward pass and a
chunk of logits) or in the first layer of the backward pass (no logits, but that layer's gradients, dequantized weights
and DeepSpeed's buckets). The larger one is the prediction. The byte counts follow train/fused/model.py and the layers
of transformers and PEFT line by line; Unsloth's were fitted to measurements (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from train.families import EXPERTS, family_of, names_module

Quantization = Literal["none", "nf4", "int8", "fp8", "published"]
EngineName = Literal["fused", "unsloth", "peft"]

GIB = 2**30

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")

CHUNK_BYTES = 512 * 2**20
"""Size of the logits that the fused loss computes at a time: bfloat16, so 2,048 tokens of a 128k vocabulary."""

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight in nf4 with double quantization: 4 bits, 1 byte of scale per 64 weights, 4 bytes per 16,384."""
FP8_BYTES = 2.0
"""Bytes per weight in fp8: one in each of two layouts (train/fused/fp8.py); the scales are too few to count."""


class UnknownShape(ValueError):
    """config.json lacks keys that the arithmetic needs; the message names them."""


@dataclass(frozen=True)
class Experts:
    """The experts of a mixture: gated MLPs, of which a token goes through a few."""

    count: int
    """Of a layer."""
    active: int
    """For one token."""
    inner: int
    """Width of one expert."""
    shared: int
    """Width of what every token goes through beside them."""
    layers: int
    """Layers that have experts."""
    dense: int
    """Width of the MLP in the other layers."""


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer with gated MLPs."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    family: str = "llama"
    """`model_type`, after conversion where the checkpoint's layout needs one."""
    experts: Experts | None = None
    """Of a mixture; `intermediate` is the width that a token goes through in a layer with experts."""
    latent: int = 0
    """Weights of a layer's attention that goes through latent vectors (MLA); 0: plain attention."""
    beside: int = 0
    """Weights of the parts for images."""

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear map of a layer, by its usual name."""
        return {
            "q_proj": (self.hidden, self.q_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.q_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_weights(self) -> int:
        """Weights in the linear maps of a layer, which quantization shrinks. Of a mixture: of its mean layer."""
        plain = sum(rows * columns for rows, columns in self.linears.values())
        if self.latent:
            plain += self.latent - sum(math.prod(self.linears[name]) for name in ATTENTION)
        return round((self.layers * plain + self._more(lambda experts: experts.count)) / self.layers)

    def _more(self, counted: Callable[[Experts], int]) -> int:
        """Weights of all layers beyond those of layers that are `intermediate` wide, with this many experts each."""
        if self.experts is None:
            return 0
        experts, wide = self.experts, self.intermediate
        routed = experts.layers * (counted(experts) * experts.inner + experts.shared - wide)
        return 3 * self.hidden * (routed + (self.layers - experts.layers) * (experts.dense - wide))

    @property
    def active_weights(self) -> int:
        """Weights in linear maps of all layers that one token is multiplied with."""
        idle = 0 if self.experts is None else self._more(lambda one: one.count) - self._more(lambda one: one.active)
        return self.layers * self.layer_weights - idle

    @property
    def expert_weights(self) -> int:
        """Weights of the experts of one layer that has them."""
        return 0 if self.experts is None else 3 * self.hidden * self.experts.inner * self.experts.count

    @property
    def other_weights(self) -> int:
        """Weights that stay in 16 bits: embedding, output head, norms, biases."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        norms = (2 * self.layers + 1) * self.hidden + (2 * self.layers * self.head_dim if self.qk_norm else 0)
        biases = self.layers * (self.q_width + 2 * self.kv_width) if self.qkv_bias else 0
        routers = 0 if self.experts is None else self.experts.layers * self.hidden * self.experts.count
        return embeddings + norms + biases + routers + self.beside

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_weights + self.other_weights

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets; all but those of idle experts."""
        return self.active_weights + self.other_weights


def _shape(layers: int, hidden: int, inner: int, heads: int, kv: int, vocab: int, dim: int = 0, **more: Any) -> Shape:
    return Shape(layers, hidden, inner, heads, kv, dim or hidden // heads, vocab, **more)


_QWEN3: dict[str, Any] = {"dim": 128, "qk_norm": True, "family": "qwen3"}
_QWEN2: dict[str, Any] = {"qkv_bias": True, "family": "qwen2"}

SHAPES: dict[str, Shape] = {
    "smollm2-135m": _shape(30, 576, 1536, 9, 3, 49152, tied=True),
    "llama3.2-1b": _shape(16, 2048, 8192, 32, 8, 128256, tied=True),
    "llama3.2-3b": _shape(28, 3072, 8192, 24, 8, 128256, tied=True),
    "llama2-7b": _shape(32, 4096, 11008, 32, 32, 32000),
    "llama2-13b": _shape(40, 5120, 13824, 40, 40, 32000),
    "llama3-8b": _shape(32, 4096, 14336, 32, 8, 128256),
    "llama3-70b": _shape(80, 8192, 28672, 64, 8, 128256),
    "mistral-7b": _shape(32, 4096, 14336, 32, 8, 32768, family="mistral"),
    "qwen2.5-0.5b": _shape(24, 896, 4864, 14, 2, 151936, tied=True, **_QWEN2),
    "qwen2.5-1.5b": _shape(28, 1536, 8960, 12, 2, 151936, tied=True, **_QWEN2),
    "qwen2.5-7b": _shape(28, 3584, 18944, 28, 4, 152064, **_QWEN2),
    "qwen2.5-14b": _shape(48, 5120, 13824, 40, 8, 152064, **_QWEN2),
    "qwen2.5-32b": _shape(64, 5120, 27648, 40, 8, 152064, **_QWEN2),
    "qwen2.5-72b": _shape(80, 8192, 29568, 64, 8, 152064, **_QWEN2),
    "qwen3-0.6b": _shape(28, 1024, 3072, 16, 8, 151936, tied=True, **_QWEN3),
    "qwen3-1.7b": _shape(28, 2048, 6144, 16, 8, 151936, tied=True, **_QWEN3),
    "qwen3-4b": _shape(36, 2560, 9728, 32, 8, 151936, tied=True, **_QWEN3),
    "qwen3-8b": _shape(36, 4096, 12288, 32, 8, 151936, **_QWEN3),
    "qwen3-14b": _shape(40, 5120, 17408, 40, 8, 151936, **_QWEN3),
    "qwen3-32b": _shape(64, 5120, 25600, 64, 8, 151936, **_QWEN3),
    "glm2-6b": _shape(28, 4096, 13696, 32, 2, 65024, qkv_bias=True, family="glm"),
    "glm3-6b": _shape(28, 4096, 13696, 32, 2, 65024, qkv_bias=True, family="glm"),
    "glm4-9b": _shape(40, 4096, 13696, 32, 2, 151552, qkv_bias=True, family="glm"),
    "baichuan2-7b": _shape(32, 4096, 11008, 32, 32, 125696, family="llama"),
    "baichuan2-13b": _shape(40, 5120, 13696, 40, 40, 125696, family="alibi_llama"),
}
"""Shapes by name, for a plan without model files."""

_ALIASES = {
    "llama3.1-8b": "llama3-8b",
    "llama-3.1-8b": "llama3-8b",
    "llama-3-8b": "llama3-8b",
    "llama3.1-70b": "llama3-70b",
    "llama3.3-70b": "llama3-70b",
    "llama-3.1-70b": "llama3-70b",
    "llama-3.3-70b": "llama3-70b",
    "llama-3.2-1b": "llama3.2-1b",
    "llama-3.2-3b": "llama3.2-3b",
    "llama-2-7b": "llama2-7b",
    "llama-2-13b": "llama2-13b",
    "chatglm2-6b": "glm2-6b",
    "chatglm3-6b": "glm3-6b",
    "glm-4-9b": "glm4-9b",
    "70b": "llama3-70b",
    "8b": "llama3-8b",
}


def named(name: str) -> Shape | None:
    """The shape of a name like `llama3-8b`, `Qwen/Qwen3-8B` or `meta-llama/Llama-3.1-8B-Instruct`, or None."""
    plain = name.rsplit("/", 1)[-1].lower().replace("_", "-").removeprefix("meta-")
    for suffix in ("", "-instruct", "-chat", "-base", "-hf", "-instruct-2507", "-chat-hf", "-base-hf"):
        stem = plain.removesuffix(suffix) if suffix else plain
        stem = _ALIASES.get(stem, stem)
        if stem in SHAPES:
            return SHAPES[stem]
    return None


def from_config(config: Mapping[str, Any]) -> Shape:
    """The shape in a config.json of Llama, Mistral, Qwen2/3, GLM, ChatGLM2/3, Baichuan and similar models, mixtures of
    experts among them.

    Raises UnknownShape, which names what is missing or not supported.
    """
    beside = _weights_beside(config)
    if isinstance(config.get("text_config"), Mapping):
        config = config["text_config"]
    kind = str(config.get("model_type", "llama"))
    config = {**_UNSAID.get(kind, {}), **config}
    missing: list[str] = []

    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            if isinstance(config.get(key), int) and 0 < config[key] < 2**31:
                return int(config[key])
        if default is None:
            missing.append(" or ".join(keys))
            return 1
        return default

    layers = number("num_hidden_layers", "num_layers", "n_layer")
    hidden = number("hidden_size", "n_embd")
    experts = experts_of(config, layers) if config.get("num_hidden_layers") else None
    wide = None if experts is None else experts.active * experts.inner + experts.shared
    inner = wide or number("intermediate_size", "ffn_hidden_size", "n_inner")
    heads = number("num_attention_heads", "n_head")
    grouped = bool(config.get("multi_query_attention"))
    kv_heads = number("multi_query_group_num") if grouped else number("num_key_value_heads", default=heads)
    vocab = number("vocab_size", "padded_vocab_size")
    if "conv" in (config.get("layer_types") or ()):
        raise UnknownShape("the planner does not know layers of convolutions")
    if missing:
        raise UnknownShape(f"config.json lacks {', '.join(missing)}")
    bias = bool(config.get("attention_bias") or config.get("add_qkv_bias") or kind == "qwen2")
    return Shape(
        layers=layers,
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_latent_head(config) or number("head_dim", "kv_channels", default=hidden // heads),
        vocab=number("padded_vocab_size", default=vocab),
        tied=bool(config.get("tie_word_embeddings", kind in ("gemma", "gemma2", "gemma3_text"))),
        qkv_bias=bias,
        qk_norm=kind in ("qwen3", "qwen3_moe", "gemma3_text", "exaone4"),
        family=family_of(config).becomes or kind,
        experts=experts,
        latent=_latent_weights(config, hidden, heads),
        beside=beside + _weights_per_layer_input(config, layers, hidden),
    )


_UNSAID: dict[str, dict[str, int]] = {
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208}
}
"""What published checkpoints leave to transformers' defaults."""
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_SHARED = ("n_shared_experts", "moe_num_shared_experts", "num_shared_expert")
_SHARED_WIDTH = ("shared_expert_intermediate_size", "shared_intermediate_size")


def experts_of(config: Mapping[str, Any], layers: int) -> Experts | None:
    """The experts that a config.json tells of; None: it is no mixture. Raises UnknownShape."""
    count = _whole(config, *EXPERTS)
    if count < 2:
        return None
    active, width = _whole(config, *_ACTIVE), _whole(config, "intermediate_size")
    inner = _whole(config, "moe_intermediate_size") or width
    if not (active and inner):
        raise UnknownShape("config.json does not say how many experts a token goes through, or how wide they are")
    shared = _whole(config, *_SHARED_WIDTH) or _whole(config, *_SHARED) * inner
    dense = width
    if config.get("enable_moe_block"):  # Gemma 4: beside its dense MLP
        shared = width
    if "intermediate_size_mlp" in config:  # Llama 4: a shared expert as wide as the others
        shared, dense = inner, _whole(config, "intermediate_size_mlp")
    return Experts(count, active, inner, shared, _layers_with_experts(config, layers), dense)


def _layers_with_experts(config: Mapping[str, Any], layers: int) -> int:
    """How many layers have experts; models have four ways to say so."""
    if "first_k_dense_replace" in config:
        return layers - min(layers, _whole(config, "first_k_dense_replace"))
    if isinstance(config.get("moe_layers"), Sequence):
        return len(config["moe_layers"])
    if "interleave_moe_layer_step" in config:
        return layers // max(1, _whole(config, "interleave_moe_layer_step"))
    first = _whole(config, "moe_layer_start_index")
    step = _whole(config, "decoder_sparse_step", "moe_layer_interval") or 1
    only = config.get("mlp_only_layers") or ()
    return sum((place + 1) % step == 0 and place >= first and place not in only for place in range(layers))


def _whole(config: Mapping[str, Any], *keys: str) -> int:
    """The first of these keys that is a number above 0, or a list that begins with one; 0: none is."""
    for key in keys:
        value = config.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
            return value
    return 0


def _latent_head(config: Mapping[str, Any]) -> int:
    """Width of a head of DeepSeek's latent attention; 0: the attention is plain."""
    return _whole(config, "qk_nope_head_dim") + _whole(config, "qk_rope_head_dim") if config.get("kv_lora_rank") else 0


def _latent_weights(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    rank, head = _whole(config, "kv_lora_rank"), _latent_head(config)
    if not head:
        return 0
    queries, values = _whole(config, "q_lora_rank"), _whole(config, "v_head_dim")
    ask = queries * (hidden + heads * head) if queries else hidden * heads * head
    keys = hidden * (rank + _whole(config, "qk_rope_head_dim"))
    return ask + keys + rank * heads * (_whole(config, "qk_nope_head_dim") + values) + heads * values * hidden


def _weights_per_layer_input(config: Mapping[str, Any], layers: int, hidden: int) -> int:
    """Weights of the embeddings that Gemma 3n and 4 have for each layer, and of what brings them in."""
    wide = _whole(config, "hidden_size_per_layer_input")
    rows = _whole(config, "vocab_size_per_layer_input") or _whole(config, "vocab_size")
    return layers * wide * (rows + 3 * hidden)


def _weights_beside(config: Mapping[str, Any]) -> int:
    """About how many weights the part for images has: attention and MLP of its layers."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return 0
    wide, layers = _whole(vision, "hidden_size", "width"), _whole(vision, "num_hidden_layers", "depth")
    return layers * wide * (4 * wide + 2 * (_whole(vision, "intermediate_size") or 4 * wide))


@dataclass(frozen=True)
class OwnRanks:
    """Modules with a rank of their own, and the layers that have an adapter at all (none: all)."""

    ranks: tuple[tuple[str, int], ...] = ()
    """(lora.rank_pattern, rank), as PEFT reads them: the end of a module's name."""
    layers: tuple[int, ...] = ()

    def rank_of(self, layer: int, name: str, r: int) -> int:
        """The rank of a linear map by its name in Llama, or that of the map that holds it in other models."""
        part = "self_attn" if name in ATTENTION else "mlp"
        joined = [whole for whole, parts in _FUSED_NAMES.items() if name in parts]
        names = [f"model.layers.{layer}.{part}.{one}" for one in (name, *joined)]
        for pattern, rank in self.ranks:
            if any(names_module(pattern, one) for one in names):
                return rank
        return r

    def widest(self, r: int) -> int:
        return max((r, *(rank for _, rank in self.ranks)))


@dataclass(frozen=True)
class MemoryCase:
    """The settings of a run that decide its memory and speed."""

    tokens: int
    """Tokens per rank and forward pass, padding included."""
    sequence: int
    """Tokens that one token attends to at most: the length of a record."""
    engine: EngineName = "fused"
    quantization: Quantization = "none"
    weight_bytes: int = 2
    lora_r: int = 16
    lora_own: OwnRanks = OwnRanks()
    lora_targets: tuple[str, ...] | None = None
    """Names of the adapted linear maps of a layer; None: all seven."""
    whole: tuple[str, ...] = ()
    """Names of modules trained whole beside the adapter (lora.modules_to_save)."""
    checkpointing: bool = False
    zero_stage: int = 0
    world_size: int = 1
    weight_ranks: int | None = None
    """Ranks that share the frozen weights of the fused layers under ZeRO-3; None: all."""
    offload: bool = False
    """Whether the optimizer's state is in host memory."""
    optimizer: str = "adamw"
    """As train.optimizer."""
    offload_weights: bool = False
    """Whether ZeRO-3 keeps the weights outside the GPU between uses."""
    bucket: int | None = None
    """Elements of DeepSpeed's reduce bucket; None: its default."""


def shares_itself(engine: str, zero_stage: int) -> bool:
    """Whether the fused layers implement ZeRO-3 themselves (fused/sharded.py partitions only the layers' frozen
    weights), instead of DeepSpeed."""
    return engine == "fused" and zero_stage == 3


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a step, by part."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def lora_parameters(shape: Shape, r: int, targets: tuple[str, ...] | None = None, own: OwnRanks = OwnRanks()) -> int:
    """Trainable weights of an adapter: r * (in + out) for every adapted linear map."""
    linears = shape.linears
    names = tuple(linears) if targets is None else tuple(name for name in _plain(targets) if name in linears)
    if shape.experts is None:
        layers = [number for number in own.layers or range(shape.layers) if number < shape.layers]
        if not own.ranks:
            return len(layers) * sum(r * sum(linears[name]) for name in names)
        return sum(own.rank_of(number, name, r) * sum(linears[name]) for number in layers for name in names)
    # A parameter holds the products gate and up of all experts, and LoRA's B and A stand beside it for each of them.
    inner = shape.experts.inner
    of_expert = (shape.hidden + 2 * inner) * ("gate_proj" in names) + (shape.hidden + inner) * ("down_proj" in names)
    attention = sum(sum(linears[name]) for name in names if name in ATTENTION)
    return r * (shape.layers * attention + shape.experts.layers * shape.experts.count * of_expert)


_FUSED_NAMES = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "W_pack": ("q_proj", "k_proj", "v_proj"),
    "dense": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "experts.gate_up_proj": ("gate_proj", "up_proj"),
    "experts.down_proj": ("down_proj",),
    "dense_h_to_4h": ("gate_proj", "up_proj"),
    "dense_4h_to_h": ("down_proj",),
}


_OF_VOCABULARY = {"embed_tokens", "lm_head", "embed_in", "embed_out", "wte", "word_embeddings", "output_layer"}


def trainable(
    shape: Shape,
    r: int,
    targets: tuple[str, ...] | None = None,
    whole: tuple[str, ...] = (),
    own: OwnRanks = OwnRanks(),
) -> int:
    """Count the weights of the adapter and of the modules in `whole`, which are trained as copies of the frozen ones.
    Norms are too small to count."""
    vocabulary = sum(shape.vocab * shape.hidden for name in whole if name in _OF_VOCABULARY)
    inside = [shape.linears[name] for name in _plain(whole) if name in shape.linears]
    weights = vocabulary + shape.layers * sum(rows * columns for rows, columns in inside)
    return lora_parameters(shape, r, targets, own) + weights


def _plain(targets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for target in targets for name in _FUSED_NAMES.get(target, (target,)))


def predict(shape: Shape, setting: MemoryCase) -> Memory:
    """Bytes at the peak of one training step on one GPU, as torch.cuda.max_memory_allocated would count them."""
    world = max(1, setting.world_size)
    own = shares_itself(setting.engine, setting.zero_stage)
    setting = replace(setting, zero_stage=0) if own else setting
    stage = setting.zero_stage
    adapter = trainable(shape, setting.lora_r, setting.lora_targets, setting.whole, setting.lora_own)
    linear_bytes = _linear_bytes(setting)
    layer_bytes = round(shape.layer_weights * linear_bytes)
    weights = shape.layers * layer_bytes + shape.other_weights * setting.weight_bytes
    if own and world > 1:
        # a rank's share, and the two layers that are gathered, in fp8 with their transposes: ranks share one byte there
        shared = layer_bytes // 2 if setting.quantization == "fp8" else layer_bytes
        weights += (2 - shape.layers) * layer_bytes + shape.layers * shared // (setting.weight_ranks or world)
    if stage == 3:
        # a rank's share, and what is gathered at a time: two layers (one in use, one prefetched) or the head
        gathered = max(2 * layer_bytes, shape.vocab * shape.hidden * setting.weight_bytes)
        kept = 0 if setting.offload_weights else weights // world
        weights = kept + (gathered if world > 1 or setting.offload_weights else 0)
    peak = max(_moments(shape, setting), key=lambda moment: moment.total)
    return Memory(
        weights=weights,
        adapter=adapter * (4 if stage == 0 else 2) // (world if stage == 3 else 1),
        # ZeRO-3 gathers them in float32
        gradients=adapter * (2 if stage in (1, 2) else 4) // (world if stage >= 2 else 1),
        optimizer=_optimizer_bytes(setting, adapter, stage),
        activations=round(peak.activations),
        logits=round(peak.logits),
        buffers=round(peak.buffers),
    )


def _linear_bytes(setting: MemoryCase) -> float:
    """Bytes per frozen weight of a linear map. Published weights are taken to have 4 bits in groups of 128."""
    known = {"nf4": NF4_BYTES, "int8": 1.0, "fp8": FP8_BYTES, "published": 0.5 + 2.5 / 128}
    return known.get(setting.quantization, float(setting.weight_bytes))


STATE_BYTES = {
    "adamw": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256, "adafactor": 0.5, "lion": 4.0,
    "muon": 4.0,
}  # fmt: skip
"""{train.optimizer: bytes of state per trained weight}. 8-bit states have two scales per 256 weights; Adafactor keeps a
row and a column of each matrix, of which the shorter side has at least eight."""


def _optimizer_bytes(setting: MemoryCase, adapter: int, stage: int) -> int:
    """Bytes of the optimizer's states, and under ZeRO of the fp32 masters, of a rank."""
    if setting.offload:
        return 0
    each = STATE_BYTES[setting.optimizer] + (4 if stage else 0)
    return round(adapter * each) // (setting.world_size if stage else 1)


@dataclass(frozen=True)
class _Moment:
    """Bytes that a step holds at one moment besides weights and optimizer."""

    activations: float
    logits: float
    buffers: float

    @property
    def total(self) -> float:
        return self.activations + self.logits + self.buffers


STANDING = 64 * 2**20
"""Rotary tables, the workspace of cuBLAS and other small constant allocations."""


def _moments(shape: Shape, setting: MemoryCase) -> tuple[_Moment, ...]:
    """The end of the forward pass, and the first layer of the backward pass."""
    tokens = setting.tokens * setting.weight_bytes / 2  # the counts below assume 16-bit activations
    saved, transient = _PER_TOKEN[setting.engine](shape, setting)
    logits = _logits(shape, setting)
    always = STANDING + _standing_bucket(setting)
    layers = shape.layers * saved
    if setting.checkpointing:
        # Unsloth moves each layer's input to host memory; the others keep it on the GPU
        layers = 0 if setting.engine == "unsloth" else shape.layers * 2 * shape.hidden
    recomputed = saved if setting.checkpointing else 0
    adapted = _adapted_experts(shape, setting)  # of one layer
    kept = 0 if setting.checkpointing or shape.experts is None else (shape.experts.layers - 1) * adapted
    backward = always + _dense_weights(shape, setting) + _backward_buckets(setting) + kept + 2 * adapted
    always += kept + adapted
    if setting.engine == "unsloth":  # fitted as one sum
        return (_Moment(tokens * (layers + recomputed + transient), logits, backward),)
    return (
        _Moment(tokens * layers, logits, always),
        _Moment(tokens * (layers + recomputed + transient), 0, backward),
    )


def _adapted_experts(shape: Shape, setting: MemoryCase) -> int:
    """Bytes of one layer's experts as PEFT multiplies with them: weight and adapter as one sum, beside the weight. The
    backward pass of a layer holds the sum's gradient too."""
    named = None if setting.lora_targets is None else {"gate_proj", "down_proj"} & set(_plain(setting.lora_targets))
    if shape.experts is None or named == set():
        return 0
    return shape.expert_weights * setting.weight_bytes


def _fused_per_token(shape: Shape, setting: MemoryCase) -> tuple[float, float]:
    """Bytes a token of one layer of train/fused/model.py: (saved, at work in the backward pass)."""
    qkv = shape.q_width + 2 * shape.kv_width
    saved = (
        2 * 2 * shape.hidden  # the layer's input and the residual stream after attention
        + 2 * (qkv + shape.q_width)  # rotated queries, keys, values; the attention's output
        + 4 * shape.heads  # its log-sum-exp
        + 2 * 2 * shape.intermediate  # gate and up
        + 2
        * 9
        * setting.lora_own.widest(
            setting.lora_r
        )  # the adapters' inner activations, and space for two beside gate and up
        + 8  # 1/rms, twice
    )
    if shape.qk_norm:
        saved += 2 * (shape.q_width + shape.kv_width) + 4 * (shape.heads + shape.kv_heads)
    if shape.family in ("gemma3_text", "glm4", "exaone4"):
        saved += 2 * 2 * shape.hidden + 8  # what attention and MLP give to the norms behind them, and 1/rms
    # the MLP: the gradient coming in, that of the residual stream, and the inner activation (gate and up are reused)
    mlp = 2 * 2 * shape.hidden + 2 * shape.intermediate
    if setting.quantization == "fp8":
        mlp += 2 * shape.intermediate  # the gradients of gate and up in fp8, made with the inner activation
    # attention: the gradient coming in and that of the attention's output, the gradients of q, k, v, the same rotated
    # back, and the kernel's float32 sum over queries
    heads = 2 * shape.hidden + 2 * shape.q_width + 2 * 2 * qkv + 4 * shape.q_width
    return saved, max(mlp, heads)


def _unsloth_per_token(shape: Shape, setting: MemoryCase) -> tuple[float, float]:
    qkv = shape.q_width + 2 * shape.kv_width
    saved = 2 * (5 * shape.hidden + qkv + shape.q_width + 2 * shape.intermediate) + 4 * shape.heads + 8
    return saved, 2 * (3 * shape.hidden + 3 * shape.intermediate)


def _peft_per_token(shape: Shape, setting: MemoryCase) -> tuple[float, float]:
    qkv = shape.q_width + 2 * shape.kv_width
    saved = (
        2 * 4 * shape.hidden  # both norms work in float32
        + 2 * 2 * shape.hidden  # their results, which LoRA's A of q, k, v and of gate, up take
        + 2 * (qkv + shape.q_width)  # queries, keys, values; the attention's output
        + 4 * 2 * shape.intermediate  # gate, its silu, up, their product
    )
    if shape.qk_norm:
        saved += 4 * (shape.q_width + shape.kv_width)
    if shape.experts is not None:
        saved += 2 * 2 * shape.experts.active * shape.hidden  # a copy of the input for each expert, and their outputs
    if not setting.zero_stage:
        # LoRA in float32 under autocast: every branch keeps a 16-bit copy of its input
        saved += 2 * (3 * shape.hidden + shape.q_width + shape.intermediate)
    return saved, 2 * shape.hidden + 2 * 2 * shape.intermediate


_PER_TOKEN = {"fused": _fused_per_token, "unsloth": _unsloth_per_token, "peft": _peft_per_token}

PLAIN_CHUNK = 1024
"""Positions whose logits train/training/loss.py holds at a time."""


def _logits(shape: Shape, setting: MemoryCase) -> int:
    """Bytes that the loss adds: a chunk of logits and the gradient of the hidden states."""
    hidden = setting.tokens * shape.hidden * 2 * 2
    if setting.engine == "peft":
        # in float32: the logits, their log-softmax, the gradient
        return min(setting.tokens, PLAIN_CHUNK) * shape.vocab * 3 * 4 + hidden
    rows = min(setting.tokens, max(1, CHUNK_BYTES // (2 * shape.vocab)))
    return rows * shape.vocab * 2 + hidden


def _dense_weights(shape: Shape, setting: MemoryCase) -> int:
    """Weights dequantized for one product. The fused layers also hold those of the next one (measured)."""
    if setting.quantization in ("none", "fp8"):
        return 0
    widest = max(rows * columns for rows, columns in shape.linears.values())
    return (2 if setting.engine == "fused" else 1) * widest * 2


ZERO_BUCKET = 500_000_000
"""DeepSpeed's default reduce_bucket_size, in elements."""


def _backward_buckets(setting: MemoryCase) -> int:
    """ZeRO-1 and 2 allocate two 16-bit buckets (overlap_comm) of full size when a backward pass begins, even if the
    adapter is small."""
    return 2 * 2 * _bucket(setting) if setting.zero_stage in (1, 2) else 0


def _standing_bucket(setting: MemoryCase) -> int:
    """ZeRO-3 holds one 16-bit bucket from the start."""
    return 2 * _bucket(setting) if setting.zero_stage == 3 else 0


def _bucket(setting: MemoryCase) -> int:
    return ZERO_BUCKET if setting.bucket is None else setting.bucket


def flops_per_token(shape: Shape, setting: MemoryCase) -> float:
    """Matrix operations per token of a training step with frozen weights.

    Two per weight forward and two for the gradient of the input (none for the frozen weight itself), six per weight of
    the adapter, three and a half times the two products of causal attention (half of the square), and the forward pass
    again where activations are recomputed.
    """
    weights = shape.active_weights + shape.vocab * shape.hidden
    attention = shape.layers * 2 * 2 * shape.q_width * setting.sequence / 2
    forward = 2.0 * weights + attention
    backward = 2.0 * weights + 2.5 * attention
    adapter = 6.0 * lora_parameters(shape, setting.lora_r, setting.lora_targets, setting.lora_own)
    again = 2.0 * shape.active_weights + attention if setting.checkpointing else 0.0
    return forward + backward + adapter + again


EFFICIENCY: dict[tuple[EngineName, Quantization], float] = {
    ("fused", "none"): 0.715,
    ("fused", "nf4"): 0.665,
    ("fused", "int8"): 0.5,
    ("fused", "fp8"): 1.08,
    ("unsloth", "none"): 0.62,
    ("unsloth", "nf4"): 0.57,
    ("unsloth", "int8"): 0.4,
    ("peft", "none"): 0.40,
    ("peft", "nf4"): 0.32,
    ("peft", "int8"): 0.25,
    ("peft", "published"): 0.25,
}
"""Share of the measured matrix rate that a whole step reaches (docs/performance.md)."""


def tokens_per_second(shape: Shape, setting: MemoryCase, matrix_rate: float) -> float:
    """Tokens per second, padding included, of a GPU with bfloat16 matrix products at `matrix_rate` FLOP/s."""
    efficiency = EFFICIENCY[(setting.engine, setting.quantization)]
    # The fixed cost of a pass (reading weights, launching kernels): as measured, 500 tokens reach three fifths of the
    # speed, and one pass of 17,000 tokens is 4% faster than two of 8,500.
    filled = setting.tokens / (setting.tokens + 350.0)
    return matrix_rate * efficiency * filled / flops_per_token(shape, setting)

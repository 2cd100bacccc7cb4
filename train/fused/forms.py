"""What a decoder layer of each family computes, read from transformers' own modules.

Families differ in where norms stand, in how heads are rotated and how far they see, and in factors. One table has the
names of the norms; everything else is read from the module and its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from train.fused import attention

Rope = Literal["halves", "pairs", "part", "none"]
"""Which elements of a head are rotated together: the first half with the second, adjacent ones, or the halves of the
head's first elements."""
Tables = Mapping[str, tuple[Tensor, Tensor]]
"""Kind of layer -> cos and sin, [positions, rotated elements / 2] float32."""

PAIRS = frozenset({"glm", "glm4", "ernie4_5"})
"""`model_type` of the models that rotate adjacent elements."""
_USUAL = ("input_layernorm", None, "post_attention_layernorm", None)
_NORMS: dict[str, tuple[str | None, ...]] = {
    "gemma3_text": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    "glm4": ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    "exaone4": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
}
"""`model_type` -> names of the norms before and behind attention, before and behind the MLP."""
UNROTATED = "none"
"""Key of a table that rotates by nothing, for heads that are normalized and not rotated."""


@dataclass(frozen=True)
class LayerForm:
    queries: int
    keys: int
    dim: int
    eps: float
    before_attention: Tensor | None
    """The weight of a norm; None: there is none."""
    behind_attention: Tensor | None
    before_mlp: Tensor | None
    behind_mlp: Tensor | None
    head_norms: tuple[Tensor, Tensor, float] | None
    rope: Rope
    table: str
    """Of Tables."""
    attention: attention.Form
    residual: float
    """Factor of what attention and MLP add to the residual stream."""
    gelu: bool
    """The MLP's activation is GELU by its tanh formula, not SiLU."""


def form_of(index: int, layer: Any, config: Any) -> LayerForm:
    """The form of a decoder layer; `config` is that of the text model."""
    module = layer.self_attn
    dim: int = module.head_dim
    before, behind, before_mlp, behind_mlp = (
        None if name is None else norm_weight(getattr(layer, name)) for name in _NORMS.get(config.model_type, _USUAL)
    )
    eps = float(config.rms_norm_eps)
    norms = None
    if hasattr(module, "q_norm"):
        norms = (norm_weight(module.q_norm), norm_weight(module.k_norm), eps)
    rope, table = _rope(index, module, config, normed=norms is not None)
    scale = float(getattr(module, "scaling", dim**-0.5))
    return LayerForm(
        queries=config.num_attention_heads,
        keys=config.num_key_value_heads,
        dim=dim,
        eps=eps,
        before_attention=before,
        behind_attention=behind,
        before_mlp=before_mlp,
        behind_mlp=behind_mlp,
        head_norms=norms,
        rope=rope,
        table=table,
        attention=attention.Form(None if scale == dim**-0.5 else scale, _window(index, config)),
        residual=float(getattr(layer, "residual_multiplier", 1.0)),
        gelu="gelu" in str(getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", "")),
    )


def norm_weight(norm: Any) -> Tensor:
    """What a norm multiplies by: Gemma's weights are differences from 1, applied in float32."""
    weight: Tensor = norm.weight.detach()
    return 1.0 + weight.float() if type(norm).__name__.startswith("Gemma") else weight


def _window(index: int, config: Any) -> int | None:
    kinds = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    return window if kinds is None or kinds[index] == "sliding_attention" else None


def _rope(index: int, module: Any, config: Any, *, normed: bool) -> tuple[Rope, str]:
    if not _rotates(module, config):
        return ("halves", UNROTATED) if normed else ("none", UNROTATED)
    if config.model_type in PAIRS:
        return "pairs", ""
    parameters = getattr(config, "rope_parameters", None) or {}
    share = getattr(config, "partial_rotary_factor", None) or parameters.get("partial_rotary_factor", 1.0)
    return "halves" if share == 1.0 else "part", config.layer_types[index] if _by_kind(config) else ""


def _by_kind(config: Any) -> bool:
    """Whether kinds of layers have rotary embeddings of their own."""
    return any(isinstance(value, Mapping) for value in (getattr(config, "rope_parameters", None) or {}).values())


def _rotates(module: Any, config: Any) -> bool:
    """SmolLM3 and EXAONE 4 have layers without positions."""
    if config.model_type == "exaone4":
        return module.sliding_window is None or module.is_sliding
    return bool(getattr(module, "use_rope", True))


def tables(decoder: Any, length: int, device: torch.device) -> Tables:
    """cos and sin for `length` positions, by transformers' own module."""
    at, like = torch.arange(length, device=device)[None], torch.zeros(1, device=device, dtype=torch.float32)
    config = decoder.config
    kinds = sorted(set(config.layer_types)) if _by_kind(config) else []
    made = {kind: decoder.rotary_emb(like, at, kind) for kind in kinds} or {"": decoder.rotary_emb(like, at)}
    found = {kind: (_half(cos), _half(sin)) for kind, (cos, sin) in made.items()}
    width = decoder.layers[0].self_attn.head_dim // 2
    still = torch.ones(length, width, device=device), torch.zeros(length, width, device=device)
    return {**found, UNROTATED: still}


def _half(table: Tensor) -> Tensor:
    """The second half repeats the first."""
    return table[0, :, : table.shape[-1] // 2].float().contiguous()

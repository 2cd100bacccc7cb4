"""Llama without rotary positions and with ALiBi: the architecture of Baichuan-13B and Baichuan2-13B.

transformers has no class for it, and loading such weights as a plain Llama gives wrong answers without any error. So
the converted checkpoint has its own model type, which plain transformers refuses, and this file is copied into it:
`AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)` works where this project is not installed. That is
why this file imports only torch and transformers.

ALiBi (Press et al. 2022, arXiv 2108.12409) adds `-slope(head) * (query - key)` to the attention scores;
there is no other position signal. The attention must take a float mask: SDPA or eager, never flash attention.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel


def slopes(heads: int) -> list[float]:
    """The slope of each head: 2^(-8/n), 2^(-16/n), ... for a power of two n; else every second slope of 2n follows."""
    power = 2 ** math.floor(math.log2(heads))
    ratio = 2.0 ** (-8.0 / power)
    first = [ratio ** (i + 1) for i in range(power)]
    return first if power == heads else first + slopes(2 * power)[0::2][: heads - power]


def segments(position_ids: torch.Tensor) -> torch.Tensor:
    """The record of a packed row that each position belongs to, [batch, length]: positions restart at each record."""
    starts = torch.diff(position_ids, dim=-1) != 1
    return torch.nn.functional.pad(torch.cumsum(starts, dim=-1), (1, 0))


def attention_bias(
    heads: int,
    queries: int,
    keys: int,
    dtype: torch.dtype,
    device: torch.device | str,
    padding: torch.Tensor | None = None,
    packed: torch.Tensor | None = None,
) -> torch.Tensor:
    """The float mask that is added to the scores, [1 or batch, heads, queries, keys].

    The last query is at the last key. `padding` [batch, keys]: no query sees keys that are False. `packed`
    [batch, keys]: record numbers; a query sees only its own record. The bias depends on distances, not positions, so
    left padding and packing need no correction. A query that sees nothing (padding) averages over all keys: the result
    is finite and unused.
    """
    distance = torch.arange(keys, device=device) - torch.arange(keys - queries, keys, device=device)[:, None]
    allowed = (distance <= 0)[None, None]
    if padding is not None:
        allowed = allowed & padding.to(torch.bool)[:, None, None, :]
    if packed is not None:
        allowed = allowed & (packed[:, None, -queries:, None] == packed[:, None, None, :])
    slope = torch.tensor(slopes(heads), dtype=torch.float32, device=device)[:, None, None]
    bias = (slope * distance.to(torch.float32)).to(dtype)[None]
    return torch.where(allowed, bias, torch.finfo(dtype).min)


class NoPosition(torch.nn.Module):
    """Replaces the rotary embedding: cos 1 and sin 0 leave queries and keys unchanged."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, position_ids.shape[-1], 1)
        return x.new_ones(shape), x.new_zeros(shape)


class AlibiLlamaConfig(LlamaConfig):
    model_type = "alibi_llama"


class AlibiLlamaModel(LlamaModel):
    """LlamaModel that passes an ALiBi mask to its layers. As in transformers, padding is a [batch, length] mask, and
    packing is position ids that restart, without a mask."""

    config_class = AlibiLlamaConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: AlibiLlamaConfig):
        super().__init__(config)
        self.rotary_emb = NoPosition()

    def forward(  # type: ignore[override]  # the same arguments, of which only these matter here
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("an ALiBi model takes attention_mask as [batch, length], or none")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        queries = inputs_embeds.shape[1]
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        packed = None
        if attention_mask is None and past == 0 and position_ids is not None and position_ids.dim() == 2:
            packed = segments(position_ids)
        bias = attention_bias(
            self.config.num_attention_heads,
            queries,
            past + queries,
            inputs_embeds.dtype,
            inputs_embeds.device,
            padding=attention_mask,
            packed=packed,
        )
        return super().forward(
            attention_mask=bias,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class AlibiLlamaForCausalLM(LlamaForCausalLM):
    config_class = AlibiLlamaConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: AlibiLlamaConfig):
        super().__init__(config)
        self.model = AlibiLlamaModel(config)
        self.post_init()


# save_pretrained, for example of a merged model, copies this file beside the weights.
AlibiLlamaConfig.register_for_auto_class()
AlibiLlamaForCausalLM.register_for_auto_class("AutoModelForCausalLM")


def register() -> None:
    """Register the model type with AutoConfig and AutoModelForCausalLM in this process, without remote code."""
    AutoConfig.register(AlibiLlamaConfig.model_type, AlibiLlamaConfig, exist_ok=True)
    AutoModelForCausalLM.register(AlibiLlamaConfig, AlibiLlamaForCausalLM, exist_ok=True)

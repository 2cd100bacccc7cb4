"""Attention of packed rows for transformers' own layers: by the lengths of the records, without a mask.

transformers keeps the records of a row apart with a mask of all pairs of tokens, which costs the square of the row.
This attention takes its place by name, and uses the kernels of the fused layers (train/fused/attention.py).

    if unfit_reason(model, longest) == "": use(model)
    read(layout); loss = model(...)      the layout of the row that the passes from here on read; None: padded rows
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from train.fused import attention
from train.fused.attention import Form, PackedLayout

NAME = "zlaunch_packed"
WIDEST = 256
"""The most elements of a head that the flash kernel takes."""


class _Row:
    """The row that is read. A module's state, because a backward pass, which recomputes, runs in another thread."""

    layout: PackedLayout | None = None

    @classmethod
    def now(cls) -> PackedLayout | None:
        """None also in evaluations and answers, which read padded rows and have no gradients."""
        return cls.layout if torch.is_grad_enabled() else None


def read(layout: PackedLayout | None) -> None:
    """Tell the attention how records lie in the row of the passes that follow."""
    _Row.layout = layout


def unfit_reason(model: Any, longest: int) -> str:
    """Return why the layers of a model need masks for records of up to `longest` tokens, or an empty string."""
    config = model.config.get_text_config()
    chunk = getattr(config, "attention_chunk_size", None)
    checks = (
        (getattr(config, "attn_logit_softcapping", None) is not None, "its attention caps the scores"),
        (any(name.endswith("sinks") for name, _ in model.named_parameters()), "its attention has sinks"),
        (bool(getattr(config, "attention_dropout", 0)), "its attention has dropout"),
        (bool(getattr(config, "use_bidirectional_attention", False)), "its tokens see later ones"),
        (isinstance(chunk, int) and chunk < longest, "records are longer than the chunks in which it attends"),
        (_head_width(config) > WIDEST, f"its heads are wider than {WIDEST}"),
    )
    return next((reason for failed, reason in checks if failed), "")


def _head_width(config: Any) -> int:
    widths = [getattr(config, name, None) for name in ("head_dim", "global_head_dim", "qk_head_dim")]
    known = [width for width in widths if isinstance(width, int)]
    return max(known, default=config.hidden_size // config.num_attention_heads)


def use(model: Any) -> None:
    """Let the text layers of a model attend so."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    model.config.get_text_config()._attn_implementation = NAME  # the parts for images keep their own


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    from transformers.masking_utils import sdpa_mask

    return None if _Row.now() is not None else sdpa_mask(*arguments, **options)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, tokens, dim], key and value [1, key heads, tokens, dim] -> [1, tokens, heads, dim of value]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layout = _Row.now()
    if layout is None:
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return attended, None
    width = value.shape[-1]
    if width < query.shape[-1]:  # DeepSeek's values are narrower than its keys
        value = functional.pad(value, (0, query.shape[-1] - width))
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    output: Tensor = _Attention.apply(q, k, v, layout, Form(scaling, sliding_window))
    return output[None, :, :, :width], None


class _Attention(torch.autograd.Function):  # type: ignore[misc]  # mypy does not follow torch
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, form: Form) -> Tensor:
        output, ctx.backward_of = attention.forward(q, k, v, layout, torch.empty_like(q), form)
        ctx.shape = (q.shape[0], q.shape[1] + 2 * k.shape[1], q.shape[2])
        return output.detach()  # the tensor itself would hold this function, which holds it

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        backward_of, ctx.backward_of = ctx.backward_of, None
        return *backward_of(grads[0].contiguous(), grads[0].new_empty(ctx.shape)), None, None

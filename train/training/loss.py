"""The loss of a micro batch, computed only at labelled positions.

With a vocabulary of 50,000 to 150,000 tokens, the output head costs more than the layers of a small model, and an
instruction record carries loss on a fraction of its tokens. So the head runs only on the positions that predict an
answer, in chunks. On a GPU Unsloth keeps its own loss, whose kernels never hold the logits at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from train.data.tokens import IGNORED

CHUNK = 1024
"""Positions whose logits are held at once. With more of them, the backward pass computes each chunk's logits again."""

_SCALED_HEADS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""Config fields of models that change the logits after the head: Gemma, Granite, Cohere, Falcon-H1."""


class AnswerLoss(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """A causal language model with its loss: the sum of the cross entropy over the labelled tokens.

    DeepSpeed wraps this module, so its hooks see a single forward pass whatever happens inside.
    """

    def __init__(self, model: nn.Module, *, fused: bool) -> None:
        super().__init__()
        self.model = model
        self.fused = fused
        base = model.get_base_model()
        prefix = base.base_model_prefix
        text = base.config.get_text_config()  # a model for images has one config per part
        scaled = any(getattr(text, name, None) not in (None, 1, 1.0) for name in _SCALED_HEADS)
        head = base.get_output_embeddings()
        self.split = not fused and not scaled and hasattr(base, prefix) and head is not None

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Sum of the cross entropy, a float32 scalar.

        input_ids and labels are [rows, length]. A label is the token to predict at its position (already shifted), or
        IGNORED. Further inputs, such as position_ids, go to the model unchanged.
        """
        if self.fused:
            return self._fused(input_ids, labels, inputs)
        rows, columns = torch.nonzero(labels != IGNORED, as_tuple=True)
        targets = labels[rows, columns]
        if not self.split:
            logits = self.model(input_ids=input_ids, use_cache=False, **inputs).logits
            return functional.cross_entropy(logits[rows, columns].float(), targets, reduction="sum")
        base = self.model.get_base_model()
        backbone = getattr(base, base.base_model_prefix)
        hidden = backbone(input_ids=input_ids, use_cache=False, **inputs)[0][rows, columns]
        head = base.get_output_embeddings()
        if len(targets) <= CHUNK or not torch.is_grad_enabled():
            parts = [_chunk_loss(head, h, t) for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)]
        else:
            parts = [
                checkpoint(_chunk_loss, head, h, t, use_reentrant=False)
                for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
            ]
        return torch.stack(parts).sum()

    def _fused(self, input_ids: torch.Tensor, labels: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Unsloth's loss, which shifts the labels itself and divides by num_items_in_batch."""
        unshifted = torch.full_like(labels, IGNORED)
        unshifted[:, 1:] = labels[:, :-1]
        return self.model(input_ids=input_ids, labels=unshifted, num_items_in_batch=1, **inputs).loss.float()


def _chunk_loss(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, reduction="sum")

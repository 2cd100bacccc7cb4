"""The loss of routers, which balances the load of experts: Switch Transformer's, as transformers computes it.

Routers are frozen under LoRA, so it acts through the adapters of the layers before them. A micro batch adds weight *
loss * labeled tokens to its sum of cross entropies. A step that is one micro batch then has the loss that transformers
has with `output_router_logits`; one of several has the mean of theirs, weighted by labeled tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from train.errors import UserError


class RouterLoss:
    """The loss of a model's routers, and what the micro batches of a step had of it."""

    def __init__(self, base: Any, weight: float | str) -> None:
        """`base` is the model without its adapter. Raises UserError if transformers has no such loss for it."""
        text = base.config.get_text_config()
        balance = getattr(sys.modules[type(base).__module__], "load_balancing_loss_func", None)
        active = getattr(text, "num_experts_per_tok", None)
        self._model = type(base).__name__
        if balance is None or active is None:
            raise self._missing()
        self._balance: Callable[..., torch.Tensor] = balance
        self._active: int = active
        self.weight = float(getattr(text, "router_aux_loss_coef", 0.001) if weight == "auto" else weight)
        """What it is multiplied by."""
        self._summed: torch.Tensor | float = 0.0

    def of(self, logits: Any, real: torch.Tensor | None, labelled: int) -> torch.Tensor:
        """What a micro batch adds to its sum of cross entropies.

        logits: the routers', a tuple of [tokens, experts]. real [rows, length]: 0 for padding, which does not count.
        """
        if not logits:  # Granite's classes take the argument and give none (transformers 5.17)
            raise self._missing()
        found = self._balance(logits, logits[0].shape[-1], self._active, real)
        self._summed = self._summed + found.detach().double() * labelled
        return self.weight * labelled * found

    def _missing(self) -> UserError:
        reason = f"train.router_loss: transformers computes no such loss for {self._model}"
        return UserError(reason, "set train.router_loss: 0", code="ZL-PLAN-01")

    def taken(self) -> torch.Tensor | float:
        """The unweighted losses since the last call, each times the labeled tokens of its micro batch."""
        found, self._summed = self._summed, 0.0
        return found

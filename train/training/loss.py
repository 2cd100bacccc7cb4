"""The loss of a micro batch, computed only at labeled positions, and the precision of its forward pass.

With a vocabulary of 50,000 to 150,000 tokens, the output head costs more than the layers of a small model, and an
instruction record carries loss on a fraction of its tokens. So the head runs only on the positions that predict an
answer, in chunks. On a GPU Unsloth keeps its own loss, whose kernels never hold the logits at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from train.data.tokens import IGNORED
from train.dist import World
from train.fused import plain
from train.fused.attention import PackedLayout
from train.training.router import RouterLoss

CHUNK = 1024
"""Positions whose logits are held at once. With more of them, the backward pass computes each chunk's logits again."""


class AnswerLoss(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """A causal language model with its loss: the sum of the cross entropy over the labeled tokens.

    DeepSpeed wraps this module, so its hooks see a single forward pass whatever happens inside.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        fused: bool,
        smoothing: float = 0.0,
        noise: float | None = None,
        router: RouterLoss | None = None,
        takes_layout: bool = False,
    ) -> None:
        """`takes_layout`: train.fused.plain attends, so batches of packed rows may come with their layout."""
        super().__init__()
        self.takes_layout = takes_layout
        self.model = model
        self.fused = fused
        self.smoothing = smoothing
        """train.label_smoothing; the loss of a pass without gradients is the plain one."""
        self.router = router
        """Added in training, not in evaluations."""
        self.split = not fused and _ends_with_head(model.get_base_model())
        if noise is not None:
            model.get_input_embeddings().register_forward_hook(partial(_add_noise, noise))

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        real: torch.Tensor | None = None,
        layout: PackedLayout | None = None,
        label_positions: torch.Tensor | None = None,
        **inputs: Any,
    ) -> torch.Tensor:
        """Sum of the cross entropy, a float32 scalar, and of what the routers' loss adds.

        input_ids and labels are [rows, length]. A label is the token to predict at its position (already shifted), or
        IGNORED. real [rows, length] is 0 for padding; without it, all tokens count for the routers' loss.
        label_positions, if given, are the indices of labels in a single row. Further inputs, such as position_ids, go
        to the model unchanged.
        """
        plain.read(layout)
        if self.fused:
            return self._fused(input_ids, labels, inputs)
        if label_positions is None:
            rows, columns = torch.nonzero(labels != IGNORED, as_tuple=True)
        else:  # counted on the host: no wait for the GPU
            rows, columns = torch.zeros_like(label_positions), label_positions
        targets = labels[rows, columns]
        router = self.router if self.training else None
        if router is not None:
            inputs["output_router_logits"] = True
        base = self.model.get_base_model()
        backbone = getattr(base, base.base_model_prefix) if self.split else self.model
        outputs = backbone(input_ids=input_ids, use_cache=False, **inputs)
        if self.split:
            loss = self._answers(base.get_output_embeddings(), outputs[0][rows, columns], targets)
        else:
            loss = _sum_of_losses(outputs.logits[rows, columns], targets, self._smoothing)
        return loss if router is None else loss + router.of(outputs.router_logits, real, len(targets))

    @property
    def _smoothing(self) -> float:
        return self.smoothing if torch.is_grad_enabled() else 0.0

    def _answers(self, head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        smoothing = self._smoothing
        if len(targets) <= CHUNK or not torch.is_grad_enabled():
            parts = [
                _chunk_loss(head, h, t, smoothing)
                for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
            ]
        else:
            parts = [
                checkpoint(_chunk_loss, head, h, t, smoothing, use_reentrant=False)
                for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
            ]
        return torch.stack(parts).sum()

    def _fused(self, input_ids: torch.Tensor, labels: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Unsloth's loss, which shifts the labels itself and divides by num_items_in_batch."""
        unshifted = torch.full_like(labels, IGNORED)
        unshifted[:, 1:] = labels[:, :-1]
        return self.model(input_ids=input_ids, labels=unshifted, num_items_in_batch=1, **inputs).loss.float()


def _add_noise(alpha: float, module: nn.Module, _inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
    """NEFTune on embeddings [rows, length, hidden], in training only; as transformers adds it."""
    if not module.training:
        return embedded
    size = alpha / math.sqrt(embedded.size(1) * embedded.size(2))
    return embedded + torch.zeros_like(embedded).uniform_(-size, size)


class _Returns(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """A module in the place of another: it returns what it was given to return, and keeps its first argument."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned
        self.seen: Any = None

    def forward(self, first: torch.Tensor | None = None, **_rest: Any) -> Any:
        self.seen = first
        return self.returned


def _ends_with_head(base: Any) -> bool:
    """Whether the logits of a model are what its output head makes of its last hidden states, and nothing else.

    Gemma caps them, Granite and Cohere scale them, MiniCPM3 scales the hidden states, and the field of the config has
    another name in each. So the model's own forward pass is asked, with stand-ins for its layers and its head.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPast

    head = base.get_output_embeddings()
    names = [name for name, module in base.named_children() if module is head]
    layers = base._modules.get(base.base_model_prefix)
    if not names or layers is None:
        return False
    hidden, logits = torch.linspace(-9, 9, 8).reshape(1, 2, 4), torch.linspace(-99, 99, 16).reshape(1, 2, 8)
    first, last = _Returns(BaseModelOutputWithPast(last_hidden_state=hidden)), _Returns(logits)
    try:
        base._modules[base.base_model_prefix], base._modules[names[0]] = first, last
        found = type(base).forward(base, input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False).logits
    except Exception:  # a forward pass that is more than layers and head, each called once
        return False
    finally:
        base._modules[base.base_model_prefix], base._modules[names[0]] = layers, head
    return torch.equal(found.float(), logits) and last.seen is not None and torch.equal(last.seen, hidden)


def _chunk_loss(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return _sum_of_losses(head(hidden), targets, smoothing)


def _sum_of_losses(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=smoothing)


Autocast = Callable[[], AbstractContextManager[None]]
"""Makes the context of one forward pass."""


def autocast_for(world: World, dtype: torch.dtype) -> Autocast:
    """Autocast to half precision; nothing for float32."""
    if dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(world.device.partition(":")[0], dtype=dtype)


@contextmanager
def inference(autocast: Autocast) -> Iterator[None]:
    """No gradients, and the precision of training."""
    with torch.no_grad(), autocast():
        yield

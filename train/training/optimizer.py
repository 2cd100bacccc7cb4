"""The optimizer, its state by parameter name, and mixed precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from train.config import TrainConfig
from train.dist import World

MOMENTS = ("exp_avg", "exp_avg_sq")


State = dict[str, torch.Tensor]


class Engine(Protocol):
    loss: nn.Module
    """The module that gives a micro batch's loss; called as it is for evaluation."""
    skips: bool
    """Whether a step whose gradient is no number leaves the weights as they were, and is not the end of them."""

    def backward(self, inputs: dict[str, torch.Tensor], scale: float, *, last: bool) -> torch.Tensor:
        """Forward and backward of one micro batch; the loss (a sum, unscaled, detached). `last` of this step?"""
        ...

    def step(self, rate: float) -> torch.Tensor | float:
        """One optimizer step with learning rate `rate`; the norm of the gradient before clipping.

        Reading a tensor's value waits for the GPU; what can be done meanwhile is done first (train/training/loop.py).
        """
        ...

    def gather(self) -> State:
        """The whole state, on the CPU (a collective; only rank 0's return value is whole)."""
        ...

    def restore(self, state: State, step: int) -> None:
        """Put a state back (every rank gets the same one) that was taken after `step` optimizer steps."""
        ...

    def evaluation(self) -> Any:
        """A context for forward passes without gradients in the right precision."""
        ...


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def optimizer_of(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; with LoRA+ the B matrices are a group with a rate of their own."""
    train, ratio = config.train, config.lora.plus_ratio
    named = list(trainable(model))
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named], "rate_factor": 1.0}]
    if ratio is not None:
        b_side = [p for name, p in named if "lora_B" in name or "lora_embedding_B" in name]
        ids = {id(p) for p in b_side}
        groups = [
            {"params": [p for _, p in named if id(p) not in ids], "rate_factor": 1.0},
            {"params": b_side, "rate_factor": ratio},
        ]
    fused = config.device == "cuda" and train.offload == "none"
    return torch.optim.AdamW(
        groups, lr=train.learning_rate, betas=(0.9, 0.999), weight_decay=train.weight_decay, fused=fused
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def adam_step(optimizer: torch.optim.Optimizer, step: int, parameter: torch.Tensor) -> torch.Tensor:
    """AdamW keeps its step on the device only when it is fused."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return torch.tensor(float(step), dtype=torch.float32, device=parameter.device if fused else "cpu")


def autocast_of(world: World, dtype: torch.dtype) -> Any:
    """A context factory: autocast where the model is in half precision, nothing in float32."""
    if dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(world.device.partition(":")[0], dtype=dtype)


class no_grad:
    def __init__(self, autocast: Any) -> None:
        self.contexts = (torch.no_grad(), autocast())

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *details: Any) -> None:
        for context in reversed(self.contexts):
            context.__exit__(*details)

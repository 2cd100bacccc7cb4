"""AdamW over the trainable parameters, and the state of a run by parameter name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from train.config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of the gradient and of its square."""

State = dict[str, torch.Tensor]
"""{"param/<name>", "exp_avg/<name>", "exp_avg_sq/<name>": float32 tensor}, by the PEFT model's parameter names.

It holds no trace of the number of ranks or of the ZeRO stage.
"""


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of what the optimizer changes."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; with LoRA+ the B matrices form a group with their own learning rate."""
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


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def step_count(optimizer: torch.optim.Optimizer, step: int, parameter: torch.Tensor) -> torch.Tensor:
    """The `step` entry of a parameter's state; only the fused AdamW keeps it on the device."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return torch.tensor(float(step), dtype=torch.float32, device=parameter.device if fused else "cpu")

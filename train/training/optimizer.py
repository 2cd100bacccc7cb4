"""AdamW over the trainable parameters, and the state of a run by parameter name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from train.config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of the gradient and of its square."""

State = dict[str, torch.Tensor]
"""{"param/<name>", "exp_avg/<name>", "exp_avg_sq/<name>": float32 tensor}, by the PEFT model's parameter names.

It holds no trace of the number of ranks or of the ZeRO stage. A run in float16 adds what `scaling_state` makes.
"""


def scaling_state(scale: float, good_steps: int, updates: float, patience: float = 1) -> State:
    """The state of loss scaling: the factor, steps since it last changed, and AdamW's own count of its updates.

    A step whose gradient overflowed updates nothing, so the count may be below the number of the run's steps.
    `patience` is DeepSpeed's hysteresis: how many overflows it takes until the factor is lowered.
    """
    values = {"scale": scale, "good_steps": good_steps, "updates": updates, "patience": patience}
    return {f"scaling/{name}": torch.tensor(float(value)) for name, value in values.items()}


@dataclass(frozen=True)
class Scaling:
    """What `scaling_state` recorded. A run that scales no losses, or an older version, records nothing."""

    known: bool
    scale: float
    good_steps: int
    updates: int
    patience: int

    @staticmethod
    def of(state: State, step: int) -> Scaling:
        """From a state saved after `step` optimizer steps."""

        def value(name: str, default: float) -> float:
            return float(state.get(f"scaling/{name}", default))

        return Scaling(
            known="scaling/scale" in state,
            scale=value("scale", 1.0),
            good_steps=int(value("good_steps", 0)),
            updates=int(value("updates", step)),
            patience=int(value("patience", 1)),
        )


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of what the optimizer changes."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW. Norms and biases are not decayed, and with LoRA+ the B matrices have a learning rate of their own."""
    train, ratio = config.train, config.lora.plus_ratio
    kept = undecayed(model) if train.weight_decay else frozenset()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable(model):
        b_side = "lora_B" in name or "lora_embedding_B" in name
        factor = ratio if ratio is not None and b_side else 1.0
        groups.setdefault((factor, 0.0 if name in kept else train.weight_decay), []).append(parameter)
    fused = config.device == "cuda" and train.offload == "none"
    return torch.optim.AdamW(
        [{"params": group, "rate_factor": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        fused=fused,
    )


_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def undecayed(model: nn.Module) -> frozenset[str]:
    """Names of the parameters without weight decay: all that `Trainer.get_decay_parameter_names` leaves out."""
    norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.LayerNorm))
    names = (name for name, _ in model.named_parameters())
    return frozenset(name for name in names if name.startswith(norms) or _UNDECAYED.search(name.lower()))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def step_count(optimizer: torch.optim.Optimizer, step: int, parameter: torch.Tensor) -> torch.Tensor:
    """The `step` entry of a parameter's state; only the fused AdamW keeps it on the device."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return torch.tensor(float(step), dtype=torch.float32, device=parameter.device if fused else "cpu")

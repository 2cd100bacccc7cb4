"""The optimizer over the trainable parameters, and the state of a run by parameter name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from train.config import TrainConfig
from train.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of the gradient and of its square."""

State = dict[str, torch.Tensor]
"""{"param/<name>", "exp_avg/<name>", "exp_avg_sq/<name>": float32 tensor}, by the PEFT model's parameter names.

It holds no trace of the number of ranks or of the ZeRO stage. Another optimizer than AdamW has other entries than the
two moments (bitsandbytes: bytes, and the scale of each block). A run in float16 adds what `scaling_state` makes.
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


def make_optimizer(config: TrainConfig, model: nn.Module) -> Any:
    """The optimizer of train.optimizer over the trainable parameters.

    Norms and biases are not decayed. LoRA+ gives the B matrices a learning rate of their own, and
    train.learning_rates gives one to the names that it matches.
    """
    train = config.train
    kept = undecayed(model) if train.weight_decay else frozenset()
    by_adamw = _changed_by_adamw(train.optimizer, model)
    parts: dict[str, dict[tuple[float, float], list[nn.Parameter]]] = {}
    for name, parameter in trainable(model):
        groups = parts.setdefault("adamw" if name in by_adamw else train.optimizer, {})
        key = (_rate_factor(config, name), 0.0 if name in kept else train.weight_decay)
        groups.setdefault(key, []).append(parameter)
    made = [
        _make(config, kind, [{"params": g, "rate_factor": rate, "weight_decay": decay} for (rate, decay), g in groups])
        for kind, groups in ((kind, part.items()) for kind, part in parts.items())
    ]
    return made[0] if len(made) == 1 else Together(made)


_OF_VOCABULARY = re.compile(r"embed_tokens|lm_head|lora_embedding|\bwte\b")


def _changed_by_adamw(kind: str, model: nn.Module) -> frozenset[str]:
    """Names of the weights that AdamW changes in place of another optimizer.

    Muon changes matrices, and none that is looked up by token (Moonlight). States of embeddings stay in 32 bits, as in
    Trainer: a token that few records have would lose its steps to rounding.
    """
    if kind == "muon":
        return frozenset(n for n, p in model.named_parameters() if p.ndim != 2 or _OF_VOCABULARY.search(n))
    if kind in ("adamw_8bit", "paged_adamw_8bit"):
        tables = (name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
        return frozenset(f"{name}.weight" for name in tables)
    return frozenset()


def _rate_factor(config: TrainConfig, name: str) -> float:
    ratio = config.lora.plus_ratio
    factor = ratio if ratio is not None and ("lora_B" in name or "lora_embedding_B" in name) else 1.0
    own = next((rate for pattern, rate in config.train.learning_rates.items() if re.search(pattern, name)), None)
    return factor if own is None else factor * own / config.train.learning_rate


def check_rates(config: TrainConfig, model: nn.Module) -> None:
    """Raise UserError for a pattern of train.learning_rates that no trained weight has in its name."""
    names = [name for name, _ in trainable(model)]
    for pattern in config.train.learning_rates:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(
                f"train.learning_rates: no trained weight has {pattern!r} in its name",
                f"they are called like {names[0]}" if names else "nothing is trained",
                code="ZL-JOB-01",
            )


def _make(config: TrainConfig, kind: str, groups: list[dict[str, Any]]) -> Any:
    train = config.train
    rate, betas = train.learning_rate, (train.adam_beta1, train.adam_beta2)
    if kind == "adamw":
        fused = config.device == "cuda" and train.offload == "none"
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=train.adam_epsilon, fused=fused)
    if kind == "muon":
        # The rule of Moonlight (arXiv 2502.16982): a step as large as one of AdamW's.
        return torch.optim.Muon(groups, lr=rate, weight_decay=train.weight_decay, adjust_lr_fn="match_rms_adamw")
    if kind == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False, warmup_init=False)
    import bitsandbytes

    if kind == "lion":
        return bitsandbytes.optim.Lion32bit(groups, lr=rate, betas=betas)
    paged = kind == "paged_adamw_8bit"
    return bitsandbytes.optim.AdamW8bit(groups, lr=rate, betas=betas, eps=train.adam_epsilon, is_paged=paged)


class Together:
    """Several optimizers over different parameters, as one."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> Mapping[Any, dict[str, Any]]:
        """The state of each parameter. It is a view: change one by `set_state`."""
        return {parameter: held for part in self.parts for parameter, held in part.state.items()}

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def undecayed(model: nn.Module) -> frozenset[str]:
    """Names of the parameters without weight decay: all that `Trainer.get_decay_parameter_names` leaves out."""
    norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.LayerNorm))
    names = (name for name, _ in model.named_parameters())
    return frozenset(name for name in names if name.startswith(norms) or _UNDECAYED.search(name.lower()))


def set_learning_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def step_count(optimizer: Any, step: int, parameter: torch.Tensor) -> Any:
    """The `step` entry of a parameter's state: a number, or a tensor that only the fused AdamW keeps on the device."""
    owner = _owner(optimizer, parameter)
    if not isinstance(owner, torch.optim.AdamW):
        return step
    fused = any(group.get("fused") for group in owner.param_groups)
    return torch.tensor(float(step), dtype=torch.float32, device=parameter.device if fused else "cpu")


def _owner(optimizer: Any, parameter: torch.Tensor) -> Any:
    """The optimizer that changes a parameter."""
    if not isinstance(optimizer, Together):
        return optimizer
    return next(
        part for part in optimizer.parts for group in part.param_groups if any(p is parameter for p in group["params"])
    )


def state_of(optimizer: Any, name: str, parameter: nn.Parameter) -> State:
    """{"<entry>/<name>": tensor} of a parameter's state, apart from its count of steps. AdamW's moments are zeros
    before the first step, and other states absent."""
    held = {key: value for key, value in optimizer.state.get(parameter, {}).items() if key != "step"}
    if isinstance(_owner(optimizer, parameter), torch.optim.AdamW):
        held = {moment: held.get(moment, torch.zeros_like(parameter)).float() for moment in MOMENTS}
    return {f"{key}/{name}": torch.as_tensor(value).detach().cpu() for key, value in held.items() if value is not None}


def set_state(optimizer: Any, name: str, parameter: nn.Parameter, state: State, step: int) -> None:
    """Give a parameter the state that `state_of` returned after `step` steps."""
    end = f"/{name}"
    held = {key.removesuffix(end): value for key, value in state.items() if key.endswith(end)}
    held = {key: value for key, value in held.items() if key != "param" and "/" not in key}
    if not held:
        return
    owner = _owner(optimizer, parameter)
    if hasattr(owner, "get_state_buffer"):  # bitsandbytes: its buffers may be paged, so they are filled, not replaced
        for group_number, group in enumerate(owner.param_groups):
            for place, each in enumerate(group["params"]):
                if each is parameter:
                    owner.init_state(group, parameter, group_number, place)
        for key, value in held.items():
            owner.state[parameter][key].copy_(value)
        owner.state[parameter]["step"] = step
        return
    owner.state[parameter] = {
        "step": step_count(optimizer, step, parameter),
        **{key: value.to(parameter.device, copy=True) for key, value in held.items()},
    }

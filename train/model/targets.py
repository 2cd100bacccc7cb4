"""The modules that lora.target_modules and lora.modules_to_save name: PEFT passes over a name that the model lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

from train.config import Lora
from train.errors import UserError, first_line

TARGETS, WHOLE = "lora.target_modules", "lora.modules_to_save"
_OF_EXPERTS = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
"""Unsloth takes these for the parameters of experts, where no module is called so (its get_moe_target_parameters)."""
_SHOWN = 8


def check(lora: Lora, model: Any, engine: str = "peft") -> None:
    """Raise UserError for what of the job's names no module of `model` (without an adapter yet) answers to."""
    found = [(name, module) for name, module in model.named_modules() if name]
    names = [name for name, _ in found]
    if engine == "unsloth" and any(name.endswith("experts") for name in names):
        names += _OF_EXPERTS
    layers = [(name.rpartition(".")[2], module) for name, module in found if _has_weights(module)]
    if isinstance(lora.target_modules, str):
        _check_pattern(lora.target_modules, names)
    else:
        _check_names(
            TARGETS, lora.target_modules, names, [n for n, module in layers if "Norm" not in type(module).__name__]
        )
    _check_names(WHOLE, lora.modules_to_save, names, [name for name, _ in layers])


def refusal(error: Exception) -> UserError | None:
    """What an engine said of these two settings when it put the adapter on; None if it spoke of something else."""
    text = str(error)
    unfit = re.match(r"Target module (\w+)\(", text)
    if unfit:
        return UserError(f"{TARGETS}: LoRA cannot be put on a module of type {unfit[1]}")
    first = first_line(error)
    if re.search(r"target.modules?\b", text, re.IGNORECASE):
        return UserError(f"{TARGETS}: {first}")
    if first.startswith("Unsloth: Module = "):  # its GPU backend trains head, embeddings and norms whole
        return UserError(f"{WHOLE}: {first}", "set train.engine: peft")
    return UserError(f"{WHOLE}: {first}") if "modules_to_save" in text else None


def trained(parameters: Iterable[str]) -> str:
    """`q_proj, v_proj`: the modules that the trainable parameters of a PEFT model belong to, by the names of these."""
    wholes = (re.split(r"\.(?:lora_|modules_to_save\.)", name)[0] for name in parameters)
    return ", ".join(sorted({whole.rpartition(".")[2] for whole in wholes}))


def _has_weights(module: Any) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _check_pattern(pattern: str, names: list[str]) -> None:
    if pattern.lower() in ("auto", "all-linear"):
        return
    try:
        whole = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{TARGETS}: {pattern!r} is not a regular expression: {error}") from None
    if not any(map(whole.fullmatch, names)):
        raise UserError(
            f"{TARGETS}: the regular expression {pattern!r} matches the whole name of no module",
            f"whole names are like {max(names, key=len)}; names of layers are given as a list: [q_proj, v_proj]",
        )


def _check_names(key: str, wanted: Iterable[str], names: list[str], known: list[str]) -> None:
    """As PEFT looks for them: a whole name, or its last parts."""
    for one in wanted:
        if not any(name == one or name.endswith(f".{one}") for name in names):
            near = sorted(dict.fromkeys(known), key=lambda name: -SequenceMatcher(None, one, name).ratio())
            more = f" and {len(near) - _SHOWN} more" if len(near) > _SHOWN else ""
            raise UserError(f"{key}: this model has no module {one!r}", f"it has {', '.join(near[:_SHOWN])}{more}")

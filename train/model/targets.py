"""Check lora.target_modules and lora.modules_to_save against the model: PEFT silently skips names that it lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

from train.config import Lora
from train.errors import UserError, first_line

TARGETS, WHOLE = "lora.target_modules", "lora.modules_to_save"
_EXPERT_PARAMETERS = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
"""In models with experts Unsloth takes these for parameters, although no module has these names."""
_SHOWN = 8
"""Names that an error message lists."""


def check_names(lora: Lora, model: Any, engine: str = "peft") -> None:
    """Raise UserError for a name of the job that no module of `model` (still without an adapter) has."""
    found = [(name, module) for name, module in model.named_modules() if name]
    names = [name for name, _ in found]
    if engine == "unsloth" and any(name.endswith("experts") for name in names):
        names += _EXPERT_PARAMETERS
    layers = [(name.rpartition(".")[2], module) for name, module in found if _has_weights(module)]
    if isinstance(lora.target_modules, str):
        _check_pattern(lora.target_modules, names)
    else:
        candidates = [name for name, module in layers if "Norm" not in type(module).__name__]
        _check_names(TARGETS, lora.target_modules, names, candidates)
    _check_names(WHOLE, lora.modules_to_save, names, [name for name, _ in layers])


def explain(error: Exception) -> UserError | None:
    """An engine's error about one of the two settings, as a user's mistake; None if it is about something else."""
    text = str(error)
    unfit = re.match(r"Target module (\w+)\(", text)
    if unfit:
        return UserError(f"{TARGETS}: LoRA does not support modules of type {unfit[1]}")
    first = first_line(error)
    if re.search(r"target.modules?\b", text, re.IGNORECASE):
        return UserError(f"{TARGETS}: {first}")
    if first.startswith("Unsloth: Module = "):  # on a GPU it trains only head, embeddings and norms in full
        return UserError(f"{WHOLE}: {first}", "set train.engine: peft")
    return UserError(f"{WHOLE}: {first}") if "modules_to_save" in text else None


def trained_modules(parameters: Iterable[str]) -> str:
    """The modules that trainable parameters of a PEFT model belong to, such as `q_proj, v_proj`."""
    modules = (re.split(r"\.(?:lora_|modules_to_save\.)", name)[0] for name in parameters)
    return ", ".join(sorted({module.rpartition(".")[2] for module in modules}))


def _has_weights(module: Any) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _check_pattern(pattern: str, names: list[str]) -> None:
    if pattern.lower() in ("auto", "all-linear"):
        return
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{TARGETS}: {pattern!r} is not a regular expression: {error}") from None
    if not any(map(compiled.fullmatch, names)):
        raise UserError(
            f"{TARGETS}: the regular expression {pattern!r} matches the full name of no module",
            f"a full name is {max(names, key=len)}; to name layers, write a list: [q_proj, v_proj]",
        )


def _check_names(key: str, wanted: Iterable[str], names: list[str], known: list[str]) -> None:
    """PEFT accepts a full name or its last parts."""
    for one in wanted:
        if not any(name == one or name.endswith(f".{one}") for name in names):
            near = sorted(dict.fromkeys(known), key=lambda name: -SequenceMatcher(None, one, name).ratio())
            more = f" and {len(near) - _SHOWN} more" if len(near) > _SHOWN else ""
            raise UserError(f"{key}: this model has no module {one!r}", f"it has {', '.join(near[:_SHOWN])}{more}")

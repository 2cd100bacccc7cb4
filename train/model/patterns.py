"""Check lora.rank_pattern, lora.alpha_pattern and lora.layers_to_transform: PEFT silently skips what fits nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from train.config import Lora
from train.errors import UserError
from train.families import names_module
from train.model.lora_places import Places

ADAPTED = ".lora_A."
"""In the names of an adapter's parameters, after the name of the module."""


def check_before(lora: Lora, model: Any, found: Places) -> None:
    """Raise UserError for layers that the model lacks, and for what cannot be had with this adapter's places."""
    check_layers(lora, getattr(model.config.get_text_config(), "num_hidden_layers", None))
    if lora.layers_to_transform and isinstance(found.modules, str):
        raise UserError(
            "lora.layers_to_transform: PEFT picks layers only where lora.target_modules is a list of names",
            "list the modules, or have the regular expression of lora.target_modules name the layers",
            code="ZL-MODEL-06",
        )
    if found.parameters and lora.has_own_ranks:
        raise UserError(
            f"{_first_key(lora)}: the experts of this model have LoRA of one rank in all layers",
            "name modules without experts in lora.target_modules, such as [q_proj, k_proj, v_proj, o_proj]",
            code="ZL-MODEL-06",
        )


def check_layers(lora: Lora, count: int | None) -> None:
    """Raise UserError for a layer that a model with `count` layers lacks; None: not known."""
    if count is not None and (beyond := [number for number in lora.layers_to_transform if number >= count]):
        raise UserError(
            f"lora.layers_to_transform: the model has the layers 0 to {count - 1}, and no {beyond[0]}",
            code="ZL-MODEL-06",
        )


def check_after(lora: Lora, adapted: Any) -> None:
    """Raise UserError for a pattern that fits no adapted module of a PEFT model."""
    if lora.rank_pattern or lora.alpha_pattern:
        names = [name for name, _ in adapted.named_parameters() if ADAPTED in name]
        check_patterns(
            lora, {name.partition(ADAPTED)[0].removeprefix("base_model.model.") for name in names}, "adapted"
        )


def check_patterns(lora: Lora, names: Iterable[str], which: str = "") -> None:
    """Raise UserError for a pattern that fits none of the modules."""
    names = sorted(names)
    patterns: Mapping[str, Mapping[str, float]] = {
        "lora.rank_pattern": lora.rank_pattern, "lora.alpha_pattern": lora.alpha_pattern,
    }  # fmt: skip
    for key, mapping in patterns.items():
        for pattern in mapping:
            if not any(names_module(pattern, name) for name in names):
                example = max(names, key=len, default="model.layers.0.self_attn.q_proj")
                raise UserError(
                    f"{key}: {pattern!r} fits no {which + ' ' if which else ''}module",
                    f"a module is {example}; a pattern stands for its name or its last parts",
                    code="ZL-MODEL-06",
                )


def _first_key(lora: Lora) -> str:
    keys = ("rank_pattern", "alpha_pattern", "layers_to_transform")
    return "lora." + next(key for key in keys if getattr(lora, key))

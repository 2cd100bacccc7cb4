"""Check lora.target_modules and lora.modules_to_save against the model: PEFT silently skips names that it lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from train.compat import ADVICE
from train.config import Lora
from train.errors import UserError, first_line
from train.families import ANY, family_of, needs_conversion
from train.model import patterns

TARGETS, WHOLE = "lora.target_modules", "lora.modules_to_save"
_EXPERT_PARAMETERS = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
"""In models with experts these are parameters, although no module has these names."""
_SHOWN = 8
"""Names that an error message lists."""


def check_names(lora: Lora, model: Any, engine: str = "peft") -> None:
    """Raise UserError for a name of the job that no module of `model` (still without an adapter) has."""
    found = [(name, module) for name, module in model.named_modules() if name]
    names = [name for name, _ in found]
    if any(name.endswith("experts") and (engine == "unsloth" or _has_weights(module)) for name, module in found):
        names += _EXPERT_PARAMETERS
    layers = [(name.rpartition(".")[2], module) for name, module in found if _has_weights(module)]
    if isinstance(lora.target_modules, str):
        _check_pattern(lora.target_modules, names)
    else:
        candidates = [name for name, module in layers if "Norm" not in type(module).__name__]
        _check_names(TARGETS, _named(lora), names, candidates)
    _check_names(WHOLE, lora.modules_to_save, names, [name for name, _ in layers])


def _named(lora: Lora) -> tuple[str, ...]:
    """The names in a list of modules, without `auto`."""
    return tuple(name for name in lora.target_modules if name != "auto")


def linears(model: Any) -> list[str]:
    """The last names of all linear layers but the output head, as PEFT's `all-linear`."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    return sorted(_maybe_include_all_linear_layers(LoraConfig(target_modules="all-linear"), model).target_modules)


def check_names_of_files(lora: Lora, folder: Path) -> None:
    """The same before a model is loaded, by the names of the weights in its files.

    Does nothing for a model whose modules may have other names than its weights.
    """
    config = _read_object(folder / "config.json")
    names = _names_in_files(folder)
    if family_of(config).name == ANY.name or needs_conversion(config) or not names:
        return
    known = [name.rpartition(".")[2] for name in names if "norm" not in name.lower()]
    patterns.check_layers(lora, config.get("num_hidden_layers"))
    patterns.check_patterns(lora, names)
    names += [".".join(parts[:end]) for name in names if (parts := name.split(".")) for end in range(1, len(parts))]
    names.append("lm_head")  # absent from the files of a model whose head is its embeddings
    if isinstance(lora.target_modules, str):
        _check_pattern(lora.target_modules, list(dict.fromkeys(names)))
    else:
        _check_names(TARGETS, _named(lora), names, known)
    _check_names(WHOLE, lora.modules_to_save, names, known)


def _names_in_files(folder: Path) -> list[str]:
    """Modules with weights, by the index of a checkpoint or the headers of its files; empty: they do not say."""
    index = next((file for name in _INDEXES if (file := folder / name).is_file()), None)
    if index is not None:
        weights = list(_read_object(index).get("weight_map", {}))
    else:
        weights = [name for file in sorted(folder.glob("*.safetensors")) for name in _header(file)]
    return list(dict.fromkeys(name.rpartition(".")[0] for name in weights if name != "__metadata__"))


_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def _header(file: Path) -> dict[str, Any]:
    """What a safetensors file says about its tensors: a length of 8 bytes, and JSON."""
    with file.open("rb") as opened:
        found: dict[str, Any] = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return found


def _read_object(file: Path) -> dict[str, Any]:
    """Raises UserError for a file of a model that is absent or no JSON object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: cannot read {file}: {first_line(error)}", code="ZL-MODEL-02") from None
    if not isinstance(found, dict):
        raise UserError(f"model.path: {file} is not a JSON object", code="ZL-MODEL-02")
    return found


def check_continued(asked: str | tuple[str, ...], adapter: Any, model: Any) -> None:
    """Raise UserError if the job's lora.target_modules are other modules of `model` than the adapter's."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists

    def modules(settings: Any) -> set[str]:
        return {name for name, _ in model.named_modules() if check_target_module_exists(settings, name)}

    if asked in ("auto", adapter.target_modules):
        return
    names: Any = asked if isinstance(asked, str) else list(asked)
    if "auto" in asked and not isinstance(asked, str):
        names = [*(name for name in asked if name != "auto"), *linears(model)]
    job = LoraConfig(target_modules=names, modules_to_save=adapter.modules_to_save)
    wanted, held = modules(_maybe_include_all_linear_layers(job, model)), modules(adapter)
    if wanted != held:
        other = sorted(wanted ^ held)
        raise UserError(
            f"{TARGETS} names other modules than the adapter: {other[0]}, {len(other)} in all",
            ADVICE,
            code="ZL-MODEL-06",
        )


def explain(error: Exception) -> UserError | None:
    """An engine's error about one of the two settings, as a user's mistake; None if it is about something else."""
    text = str(error)
    unfit = re.match(r"Target module (\w+)\(", text)
    if unfit:
        return UserError(f"{TARGETS}: LoRA does not support modules of type {unfit[1]}", code="ZL-MODEL-06")
    first = first_line(error)
    if re.search(r"target.modules?\b", text, re.IGNORECASE):
        return UserError(f"{TARGETS}: {first}", code="ZL-MODEL-06")
    if first.startswith("Unsloth: Module = "):  # on a GPU it trains only head, embeddings and norms in full
        return UserError(f"{WHOLE}: {first}", "set train.engine: peft", code="ZL-MODEL-06")
    return UserError(f"{WHOLE}: {first}", code="ZL-MODEL-06") if "modules_to_save" in text else None


def trained_modules(parameters: Iterable[str]) -> str:
    """The modules that trainable parameters of a PEFT model belong to, such as `q_proj, v_proj`."""
    modules = (re.split(r"(?:\.base_layer)*\.(?:lora_|modules_to_save\.)", name)[0] for name in parameters)
    return ", ".join(sorted({module.rpartition(".")[2] for module in modules}))


def _has_weights(module: Any) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _check_pattern(pattern: str, names: list[str]) -> None:
    if pattern.lower() in ("auto", "all-linear"):
        return
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{TARGETS}: {pattern!r} is not a regular expression: {error}", code="ZL-MODEL-06") from None
    if not any(map(compiled.fullmatch, names)):
        raise UserError(
            f"{TARGETS}: the regular expression {pattern!r} matches the full name of no module",
            f"a full name is {max(names, key=len)}; to name layers, write a list: [q_proj, v_proj]",
            code="ZL-MODEL-06",
        )


def _check_names(key: str, wanted: Iterable[str], names: list[str], known: list[str]) -> None:
    """PEFT accepts a full name or its last parts."""
    for one in wanted:
        if not any(name == one or name.endswith(f".{one}") for name in names):
            near = sorted(dict.fromkeys(known), key=lambda name: -SequenceMatcher(None, one, name).ratio())
            more = f" and {len(near) - _SHOWN} more" if len(near) > _SHOWN else ""
            raise UserError(
                f"{key}: this model has no module {one!r}",
                f"it has {', '.join(near[:_SHOWN])}{more}",
                code="ZL-MODEL-06",
            )

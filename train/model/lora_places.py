"""Where LoRA goes in a model whose family has no list of its own, or that has experts or a part for images.

LoRA goes on the linear layers of the text model and on the weights of experts, which transformers 5 holds as parameters
with three dimensions (PEFT's `target_parameters`). It never goes on a router, even if a name or a pattern matches one:
an adapted router sends tokens to other experts. The run names what is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from train.config import Lora
from train.errors import UserError

_ROUTERS = {"gate", "router", "wg", "shared_expert_gate"}
_FUSED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "w1": "gate_up_proj", "w3": "gate_up_proj"}
_FUSED |= {"w2": "down_proj"}
"""Names of an expert's products, as a job may have them -> the parameter that holds them for all experts."""


@dataclass(frozen=True)
class Places:
    modules: str | list[str]
    """LoraConfig.target_modules."""
    parameters: tuple[str, ...] = ()
    """LoraConfig.target_parameters."""
    left_out: tuple[str, ...] = ()
    """What stays frozen although it looks like a place for LoRA, one sentence each."""


@dataclass(frozen=True)
class _Parts:
    """The parts of a model by their full names."""

    linears: dict[str, Any]
    """Linear layers of the text model, without its head, its routers and what LoRA would not reach."""
    experts: tuple[str, ...]
    """Weights of experts: parameters with three dimensions."""
    routers: tuple[str, ...]
    beside: tuple[str, ...]
    """Linear layers outside the text model: those for images and sound."""
    unreachable: tuple[str, ...]

    @property
    def plain(self) -> bool:
        """Whether names of layers mean in this model what they say."""
        return not (self.experts or self.routers or self.beside or self.unreachable)


def places(model: Any, asked: str | Iterable[str], engine: str, lora: Lora) -> Places:
    """Where LoRA goes in `model`, still without an adapter.

    `asked` is lora.target_modules, with `all-linear` for every place. Raises UserError if experts cannot have it.
    """
    parts = _parts_of(model)
    every = isinstance(asked, str) and asked.lower() == "all-linear"
    if parts.plain and not every:
        return Places(asked if isinstance(asked, str) else list(asked))
    wanted = _Wanted(None if every else asked)
    linears = [name for name in parts.linears if wanted.takes(name)]
    experts = _adapted_experts(parts, wanted, lora) if engine == "peft" else []
    parameters = tuple(sorted({".".join(name.split(".")[-2:]) for name in experts}))
    lost = _taken_for_experts(model, linears) if engine == "peft" else []
    kept = [name for name in linears if name not in set(lost)]
    frozen = "" if experts else _unfit(lora) if engine == "peft" else engine
    return Places(_shortened(model, kept), parameters, tuple(_left_out(parts, wanted, lost, frozen)))


def _adapted_experts(parts: _Parts, wanted: _Wanted, lora: Lora) -> list[str]:
    """Weights of experts that get LoRA. Raises UserError if the job names some that cannot."""
    experts = [name for name in parts.experts if wanted.takes_expert(name)]
    if not experts:
        return []
    wanted.check_halves(parts.experts)
    if not wanted.every:
        _check_experts(lora)
    return [] if _unfit(lora) else experts


class _Wanted:
    """What lora.target_modules names; None: everything."""

    def __init__(self, asked: str | Iterable[str] | None) -> None:
        self._pattern = re.compile(asked) if isinstance(asked, str) else None
        self._names = None if asked is None or isinstance(asked, str) else tuple(asked)
        self.every = asked is None

    def takes(self, name: str) -> bool:
        if self._pattern is not None:
            return self._pattern.fullmatch(name) is not None
        return self._names is None or any(name == one or name.endswith(f".{one}") for one in self._names)

    def takes_expert(self, name: str) -> bool:
        block, _, leaf = name.rpartition(".")
        return self.takes(name) or any(self.takes(f"{block}.{old}") for old, new in _FUSED.items() if new == leaf)

    def check_halves(self, experts: Iterable[str]) -> None:
        """Raise UserError if only one of the products gate and up is asked for: one parameter holds both."""
        blocks = {name.rpartition(".")[0] for name in experts if name.endswith(".gate_up_proj")}
        for one, other in (("gate_proj", "up_proj"), ("up_proj", "gate_proj"), ("w1", "w3"), ("w3", "w1")):
            if any(self.takes(f"{block}.{one}") and not self.takes(f"{block}.{other}") for block in blocks):
                raise UserError(
                    f"lora.target_modules has {one} without {other}, and this model's experts hold both in one weight",
                    f"name {other} too, or neither",
                    code="ZL-MODEL-06",
                )


def _parts_of(model: Any) -> _Parts:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    text, head = _text_model(model), model.get_output_embeddings()
    experts = _experts(text)
    blocks = {name.rpartition(".")[0] for name, _ in model.named_modules() if name.endswith(".experts")}
    linears, routers, beside, unreachable = {}, [], [], []
    mixers = [name for name, module in model.named_modules() if "mamba" in type(module).__name__.lower()]
    for name, module in model.named_modules():
        if module is head or not isinstance(module, (nn.Linear, Conv1D)):
            if _is_router(name, module, blocks):
                routers.append(name)
        elif not _within(name, text.prefix):
            beside.append(name)
        elif not any(part.isdigit() for part in name.split(".")):
            continue  # around the layers, as Gemma 4's projection of embeddings
        elif _is_router(name, module, blocks):
            routers.append(name)
        elif name.endswith(".out_proj") and name.rpartition(".")[0] in mixers:
            unreachable.append(name)  # its kernels read the weight itself, past LoRA
        else:
            linears[name] = module
    return _Parts(linears, tuple(experts), tuple(routers), tuple(beside), tuple(unreachable))


@dataclass(frozen=True)
class _Text:
    module: Any
    prefix: str
    """The full name of the text model; empty: the whole model."""


def _text_model(model: Any) -> _Text:
    """The part of a model that reads text: all of it, or the decoder of a model that also sees or hears."""
    config = model.config
    if config.get_text_config() is config:
        return _Text(model, "")
    decoder = model.get_decoder()
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    return _Text(decoder, name)


def _within(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(f"{prefix}.")


def _experts(text: _Text) -> list[str]:
    """Full names of the weights that hold all experts of a layer: [experts, rows, columns]."""
    found = []
    for name, module in text.module.named_modules():
        if "expert" not in f"{name.rpartition('.')[2]} {type(module).__name__}".lower():
            continue
        full = f"{text.prefix}.{name}" if text.prefix else name
        found += [f"{full}.{key}" for key, value in module.named_parameters(recurse=False) if _dimensions(value) == 3]
    return found


def _dimensions(parameter: Any) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 leaves an empty tensor in its place


def _is_router(name: str, module: Any, blocks: set[str]) -> bool:
    """Whether a layer decides which experts a token goes to, or how much they count."""
    if next(module.parameters(recurse=False), None) is None:
        return False
    if "router" in type(module).__name__.lower():
        return True
    parts = name.split(".")
    in_block = any(_within(name, block) for block in blocks) or "moe" in name.lower()
    return in_block and any(part in _ROUTERS for part in parts[-2:])


def _unfit(lora: Lora) -> str:
    """The setting that PEFT does not have for parameters; empty: none."""
    if lora.dropout:
        return "lora.dropout"
    return "lora.dora" if lora.dora else "lora.init" if lora.init != "default" else ""


def _check_experts(lora: Lora) -> None:
    setting = _unfit(lora)
    if setting:
        raise UserError(
            f"lora.target_modules names the model's experts, and PEFT has no {setting} for them",
            f"leave {setting} out, or name only layers of attention: [q_proj, k_proj, v_proj, o_proj]",
            code="ZL-MODEL-06",
        )


def _taken_for_experts(model: Any, linears: list[str]) -> list[str]:
    """Layers whose names PEFT would read as those of experts, as transformers 4 had them: PEFT itself is asked."""
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:
        return []
    config = LoraConfig(target_modules=list(linears) or None)
    convert_peft_config_for_transformers(_complete(config), model, None)
    left = set(config.target_modules or ())
    return [name for name in linears if name not in left]


def _complete(config: Any) -> Any:
    """With names for both halves of experts, without which PEFT's conversion refuses."""
    config.target_modules = {*(config.target_modules or ()), "gate_proj", "up_proj", "w1", "w3"}
    return config


def _shortened(model: Any, names: list[str]) -> list[str]:
    """The last parts of full names where no other layer ends alike, so that an adapter's config stays readable."""
    wanted = set(names)
    others = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in wanted}
    return sorted({leaf if (leaf := name.rpartition(".")[2]) not in others else name for name in names})


def _left_out(parts: _Parts, wanted: _Wanted, lost: list[str], frozen: str) -> Iterator[str]:
    """`frozen`: the setting or the engine for which experts have no LoRA; empty: they have it."""
    if parts.routers and (parts.experts or any(map(wanted.takes, parts.routers))):
        yield f"no LoRA on {_leaves(parts.routers)}: routers stay frozen"
    if parts.experts and wanted.every and frozen:
        why = f"PEFT has no {frozen} for them" if "." in frozen else f"the engine {frozen} puts none there"
        yield f"no LoRA on the experts ({_leaves(parts.experts)}): {why}"
    if lost:
        yield (
            f"no LoRA on {_leaves(lost)} of shared experts and dense layers: PEFT reads these names as the experts' own"
        )
    if any(map(wanted.takes, parts.unreachable)):
        yield f"no LoRA on {_leaves(parts.unreachable)} of Mamba layers: their kernels read the weight past it"
    if any(map(wanted.takes, parts.beside)):
        yield "only the text model is trained: its layers for images and sound stay as they are"


def _leaves(names: Iterable[str]) -> str:
    return ", ".join(sorted({".".join(part for part in name.split(".")[-1:]) for name in names}))

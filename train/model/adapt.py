"""Put LoRA on a base model: new weights, or those of an existing adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from train.compat import REPLACES_WEIGHTS
from train.config import TrainConfig
from train.dist import quiet
from train.errors import UserError, first_line
from train.families import Family
from train.model import patterns, pissa, targets
from train.model.base import BaseModel, recorded_adapter
from train.model.load import Loaded, is_fault_of_files
from train.model.lora_places import Places, places


def adapt(config: TrainConfig, loaded: Loaded, base: BaseModel, family: Family) -> tuple[Any, tuple[str, ...]]:
    """(the PEFT model: LoRA weights in float32, everything else frozen; what has no LoRA and why). Raises UserError.

    The new weights are a function of the seed, so all ranks get the same ones.
    """
    torch.manual_seed(config.train.seed)
    left_out: tuple[str, ...] = ()
    if config.lora.adapter is not None:
        adapted = _continue_adapter(config, loaded)
    else:
        targets.check_names(config.lora, loaded.model, loaded.engine)
        found = places(loaded.model, _target_modules(config, family, loaded.model), loaded.engine, config.lora)
        patterns.check_before(config.lora, loaded.model, found)
        adapted, left_out = _add_adapter(config, loaded, found), found.left_out
        patterns.check_after(config.lora, adapted)
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    for peft_config in adapted.peft_config.values():
        peft_config.base_model_name_or_path = base.name
        peft_config.revision = base.revision
    if config.lora.init in REPLACES_WEIGHTS and config.lora.adapter is None:
        pissa.remember(adapted)
    return adapted, left_out


def _add_adapter(config: TrainConfig, loaded: Loaded, found: Places) -> Any:
    lora = config.lora
    options: dict[str, Any] = {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": found.modules,
        **({"target_parameters": list(found.parameters)} if found.parameters else {}),
        "rank_pattern": lora.rank_pattern,
        "alpha_pattern": lora.alpha_pattern,
        **({"layers_to_transform": list(lora.layers_to_transform)} if lora.layers_to_transform else {}),
        "bias": "none",
        "use_rslora": lora.rslora,
        "modules_to_save": list(lora.modules_to_save) or None,
        "init_lora_weights": True if lora.init == "default" else lora.init,
    }
    add = _add_unsloth if loaded.engine == "unsloth" else _add_peft
    try:
        return add(config, loaded, options)
    except (TypeError, ValueError) as error:
        explained = targets.explain(error)
        if explained is None:
            raise
        raise explained from error


def _target_modules(config: TrainConfig, family: Family, model: Any) -> Any:
    """`auto` is the projections of the family; for an unknown family, every linear layer except the head."""
    names = config.lora.target_modules
    if names == "auto":
        return list(family.lora_targets) or "all-linear"
    if isinstance(names, str):
        return names
    usual = list(family.lora_targets) or targets.linears(model)
    return [one for name in names for one in (usual if name == "auto" else [name])]


def _add_unsloth(config: TrainConfig, loaded: Loaded, options: dict[str, Any]) -> Any:
    from unsloth import FastLanguageModel

    checkpointing = "unsloth" if config.train.gradient_checkpointing else False
    with quiet():
        return FastLanguageModel.get_peft_model(
            loaded.model, random_state=config.train.seed, use_gradient_checkpointing=checkpointing, **options
        )


def _add_peft(config: TrainConfig, loaded: Loaded, options: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    model = _ready_for_training(config, loaded)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", use_dora=config.lora.dora, **options))


def _ready_for_training(config: TrainConfig, loaded: Loaded) -> Any:
    # PEFT casts what is not quantized (embeddings, head, norms) to float32. The fused layers do not need that.
    if not config.model.loads_quantized or loaded.engine == "fused":
        return loaded.model
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(
        loaded.model,
        use_gradient_checkpointing=config.train.gradient_checkpointing and loaded.engine == "peft",
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )


def _continue_adapter(config: TrainConfig, loaded: Loaded) -> Any:
    """Load lora.adapter for further training, as its adapter_config.json has it, with the job's dropout."""
    from peft import PeftConfig, PeftModel

    place = Path(str(config.lora.adapter)).expanduser()
    recorded_adapter(place)
    try:
        adapter = PeftConfig.from_pretrained(place)
        adapter.lora_dropout = config.lora.dropout
        targets.check_continued(config.lora.target_modules, adapter, loaded.model)
        model = _ready_for_training(config, loaded)
        return PeftModel.from_pretrained(model, place, is_trainable=True, config=adapter)
    except Exception as error:
        # wrong sizes are a plain RuntimeError; running out of memory is one as well
        sizes = isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError"
        if not isinstance(error, UserError) and (is_fault_of_files(error) or sizes):
            said = f"lora.adapter: {place} does not fit this base model: {first_line(error)}"
            raise UserError(said, code="ZL-MODEL-07") from error
        raise

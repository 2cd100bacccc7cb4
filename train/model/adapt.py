"""Put the adapter on a model: new LoRA weights, or those of an existing adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.config import TrainConfig
from train.dist import quiet
from train.errors import UserError, first_line
from train.families import Family
from train.model import pissa
from train.model.base import BaseModel, read_json
from train.model.load import Loaded, is_fault_of_files
from train.model.targets import check, refusal


def target_modules(config: TrainConfig, family: Family) -> Any:
    """`auto`: the projections of the model's family, or every linear layer but the head of a model of no known one."""
    targets = config.lora.target_modules
    if targets == "auto":
        return list(family.lora_targets) or "all-linear"
    return targets if isinstance(targets, str) else list(targets)


def adapt(config: TrainConfig, loaded: Loaded, base: BaseModel, family: Family) -> Any:
    """The PEFT model: LoRA weights in float32, everything else frozen. The same on every rank for the same seed."""
    import torch

    lora = config.lora
    torch.manual_seed(config.train.seed)
    if lora.adapter is not None:
        adapted = _continue_adapter(config, loaded)
    else:
        wanted: dict[str, Any] = {
            "r": lora.r,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": target_modules(config, family),
            "bias": "none",
            "use_rslora": lora.rslora,
            "modules_to_save": list(lora.modules_to_save) or None,
            "init_lora_weights": True if lora.init == "default" else lora.init,
        }
        adapt_one = _adapt_unsloth if loaded.engine == "unsloth" else _adapt_peft
        check(lora, loaded.model, loaded.engine)
        try:
            adapted = adapt_one(config, loaded, wanted)
        except (TypeError, ValueError) as error:
            refused = refusal(error)
            if refused is None:
                raise
            raise refused from error
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    for peft_config in adapted.peft_config.values():
        peft_config.base_model_name_or_path = base.name
        peft_config.revision = base.revision
    if lora.init == "pissa" and lora.adapter is None:
        pissa.remember(adapted)
    return adapted


def _adapt_unsloth(config: TrainConfig, loaded: Loaded, wanted: dict[str, Any]) -> Any:
    from unsloth import FastLanguageModel

    checkpointing = "unsloth" if config.train.gradient_checkpointing else False
    with quiet():
        return FastLanguageModel.get_peft_model(
            loaded.model, random_state=config.train.seed, use_gradient_checkpointing=checkpointing, **wanted
        )


def _adapt_peft(config: TrainConfig, loaded: Loaded, wanted: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    model = _ready_for_training(config, loaded)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", use_dora=config.lora.dora, **wanted))


def _ready_for_training(config: TrainConfig, loaded: Loaded) -> Any:
    # PEFT turns what is not quantised (embeddings, head, norms) into float32, which the fused layers do without
    if config.model.quantization == "none" or loaded.engine == "fused":
        return loaded.model
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(
        loaded.model,
        use_gradient_checkpointing=config.train.gradient_checkpointing and loaded.engine == "peft",
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )


def _continue_adapter(config: TrainConfig, loaded: Loaded) -> Any:
    """An adapter in PEFT's format on this base; its own adapter_config.json says rank, targets and kind."""
    from peft import PeftModel

    place = Path(str(config.lora.adapter)).expanduser()
    advice = "name the adapter/ of a finished run"
    if not (place / "adapter_config.json").is_file():
        raise UserError(f"lora.adapter: {place} has no adapter_config.json", advice)
    if not any(place.glob("adapter_model.*")):
        raise UserError(f"lora.adapter: {place} has no adapter_model.safetensors", advice)
    kind = (read_json(place / "adapter_config.json") or {}).get("peft_type")
    if kind != "LORA":
        raise UserError(f"lora.adapter: {place}/adapter_config.json is not that of a LoRA (peft_type: {kind})", advice)
    try:
        return PeftModel.from_pretrained(_ready_for_training(config, loaded), place, is_trainable=True)
    except Exception as error:
        sizes = isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError"  # torch's is one as well
        if is_fault_of_files(error) or sizes:  # torn, of other layers or sizes
            said = f"lora.adapter: {place} does not fit this base model: {first_line(error)}"
            raise UserError(said) from error
        raise

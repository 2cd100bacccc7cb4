"""The adapter in PEFT's own format: written from a run's state, and read back to prove that it is the same."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from train.config import TrainConfig
from train.dist import World
from train.model import pissa
from train.model.base import BaseModel, register_types
from train.rundir import sync_directory
from train.training.optimizer import State
from train.training.strategy import Strategy

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of logits, as a share of the largest logit, by the dtype that both models compute in."""


def save(place: Path, state: State, model: Any, tokenizer: Any) -> None:
    """adapter_model.safetensors (float32), adapter_config.json and the tokenizer with its chat template."""
    weights = {name.removeprefix("param/"): value for name, value in state.items() if name.startswith("param/")}
    trained = model.peft_config
    weights, plain = pissa.as_plain_lora(model, weights)
    try:
        model.peft_config = dict.fromkeys(trained, plain)
        model.save_pretrained(place, state_dict=weights, save_embedding_layers=False)
    finally:
        model.peft_config = trained
    tokenizer.save_pretrained(place)


def replace(place: Path, state: State, model: Any, tokenizer: Any) -> None:
    """As `save`, under a temporary name first: an older adapter stays whole until the new one is."""
    temporary = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save(temporary, state, model, tokenizer)
    older = place.with_name(f".{place.name}.old.tmp")
    _remove(older)
    with suppress(FileNotFoundError):
        place.rename(older)  # it may be a link, or open somewhere on NFS: then it cannot be removed yet
    temporary.rename(place)
    sync_directory(place.parent)
    _remove(older)


def _remove(place: Path) -> None:
    if place.is_symlink():
        place.unlink()
    else:
        shutil.rmtree(place, ignore_errors=True)


def reloads(
    place: Path, config: TrainConfig, world: World, base: BaseModel, strategy: Strategy, model: Any, dtype: torch.dtype
) -> bool | None:
    """Does a fresh base model with this adapter give the trained model's logits? None on ranks other than 0.

    A collective: under ZeRO-3 every rank takes part in the trained model's forward pass.
    """
    ids = torch.arange(1, 33, device=world.device).reshape(2, 16)
    strategy.loss.eval()
    with strategy.evaluation():
        trained = model(input_ids=ids).logits.float().cpu()
    strategy.loss.train()
    if not world.first:
        return None
    fresh = _fresh(place, config, world, base, dtype)
    with strategy.evaluation():
        loaded = fresh(input_ids=ids).logits.float().cpu()
    difference = (trained - loaded).abs().max() / trained.abs().max()
    return bool(difference <= TOLERANCE[dtype])


def _fresh(place: Path, config: TrainConfig, world: World, base: BaseModel, dtype: torch.dtype) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from train.model.load import keep_four_bit_unpacked, quantization_options

    register_types(base.directory)
    model = AutoModelForCausalLM.from_pretrained(
        base.directory,
        dtype=dtype,
        device_map={"": world.device},
        trust_remote_code=config.model.trust_remote_code,
        **quantization_options(config, dtype),
    )
    keep_four_bit_unpacked(model)
    return PeftModel.from_pretrained(model, place).eval()

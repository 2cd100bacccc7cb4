"""The adapter in PEFT's format: written from a run's state, and read back as a check."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from train.answers.generation import save_stopping
from train.config import TrainConfig
from train.data.prompts import stop_ids
from train.dist import World
from train.model import pissa
from train.model.base import BaseModel
from train.model.load import load_plain
from train.original.portable import make_portable
from train.rundir.run_files import sync_directory
from train.training.optimizer import State
from train.training.strategy import Strategy

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""By dtype of both models: how much logits may differ (`reload_difference`)."""


def save(place: Path, state: State, model: Any, tokenizer: Any, card: str) -> None:
    """Write adapter_model.safetensors (float32), adapter_config.json and README.md, which is `card`.

    Beside them the tokenizer with its chat template, and generation_config.json with the tokens that end an answer.
    """
    weights = {name.removeprefix("param/"): value for name, value in state.items() if name.startswith("param/")}
    trained = model.peft_config
    weights, plain = pissa.as_plain_lora(model, weights)
    try:
        model.peft_config = dict.fromkeys(trained, plain)
        model.save_pretrained(place, state_dict=weights, save_embedding_layers=False)
    finally:
        model.peft_config = trained
    save_stopping(place, tokenizer, stop_ids(tokenizer, model.config))
    make_portable(place)
    (place / "README.md").write_text(card, encoding="utf-8")


def replace(place: Path, state: State, model: Any, tokenizer: Any, card: str) -> None:
    """Save under a temporary name and rename: an older adapter stays whole until the new one is complete."""
    temporary = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save(temporary, state, model, tokenizer, card)
    older = place.with_name(f".{place.name}.old.tmp")
    _remove(older)
    with suppress(FileNotFoundError):
        place.rename(older)  # not removed: it may be a link, or open on another host over NFS
    temporary.rename(place)
    sync_directory(place.parent)
    _remove(older)


def _remove(place: Path) -> None:
    if place.is_symlink():
        place.unlink()
    else:
        shutil.rmtree(place, ignore_errors=True)


def reload_difference(
    place: Path, config: TrainConfig, world: World, base: BaseModel, strategy: Strategy, model: Any, dtype: torch.dtype
) -> float | None:
    """How much the logits of a fresh base model with this adapter differ from the trained model's, as the norm of the
    difference over the norm of the logits; None on ranks other than 0.

    Not the largest difference: under ZeRO the trained adapter is in bfloat16 and the saved one in float32, and single
    logits differ by up to 7% of the largest one (seen on a GPU) where the norms differ by 1.5%.

    A collective: under ZeRO-3 every rank takes part in the trained model's forward pass.
    """
    from peft import PeftModel

    ids = torch.arange(1, 33, device=world.device).reshape(2, 16)
    strategy.loss.eval()
    with strategy.evaluation():
        trained = model(input_ids=ids).logits.float().cpu()
    strategy.loss.train()
    if not world.first:
        return None
    fresh = PeftModel.from_pretrained(load_plain(config, base.directory, dtype, device=world.device), place).eval()
    with strategy.evaluation():
        loaded = fresh(input_ids=ids).logits.float().cpu()
    return float(torch.linalg.norm(trained - loaded) / torch.linalg.norm(trained))

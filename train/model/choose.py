"""Choose the engine that trains a model, and check that it can."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass

from train import compat
from train.config import TrainConfig
from train.dist import quiet
from train.errors import UserError
from train.families import Family


@dataclass(frozen=True)
class EngineChoice:
    engine: str
    reason: str


def check(config: TrainConfig, family: Family) -> None:
    """Raise UserError for settings that cannot work together (the launcher asks the same where it can)."""
    refusals = compat.check(compat.Combination.of(config, family, _capability(config)))
    if refusals:
        raise UserError(refusals[0].reason, *(f"set {refusal.instead}" for refusal in refusals))
    if config.train.engine == "unsloth" and not _has_unsloth():
        raise UserError("train.engine=unsloth, but Unsloth is not installed here", "set train.engine: auto or peft")


def choose_engine(config: TrainConfig, family: Family) -> EngineChoice:
    """Which engine trains, and why."""
    settings = compat.Combination.of(config, family, _capability(config))
    return EngineChoice(*compat.engine_for(settings, unsloth_installed=_has_unsloth()))


def _has_unsloth() -> bool:
    return importlib.util.find_spec("unsloth") is not None


def _capability(config: TrainConfig) -> tuple[int, int] | None:
    if config.device == "cpu":
        return None
    import torch

    found: tuple[int, int] = torch.cuda.get_device_capability()
    return found


def import_first(choice: EngineChoice) -> None:
    """Unsloth wants to be imported before transformers, which it patches; neither is to draw progress bars in a log."""
    if choice.engine == "unsloth":
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import unsloth  # noqa: F401 - for its effects
    from transformers.utils import logging

    logging.disable_progress_bar()

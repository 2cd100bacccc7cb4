"""Choose the engine that trains a model, and refuse settings that it cannot train with."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from train import compat
from train.config import Model, TrainConfig
from train.dist import quiet
from train.errors import UserError
from train.families import Family

UNUSED = ("torchao", "hqq", "sklearn", "scipy", "torchvision", "torchaudio", "librosa", "soundfile")
"""Packages that transformers and PEFT import where they are installed, for images, sound, assisted generation and other
quantization. The fused layers train none of that, and these imports took as long as those of transformers itself."""


@dataclass(frozen=True)
class EngineChoice:
    engine: str
    reason: str


def check_settings(config: TrainConfig, family: Family) -> None:
    """Raise UserError for settings that cannot work together. The launcher checks the same where it can."""
    refusals = compat.check(_combination(config, family))
    if refusals:
        raise UserError(refusals[0].reason, *(f"set {refusal.instead}" for refusal in refusals), code="ZL-PLAN-01")
    if config.train.engine == "unsloth" and not _has_unsloth():
        raise UserError(
            "train.engine=unsloth, but Unsloth is not installed here",
            "set train.engine: auto or peft",
            code="ZL-TRAIN-06",
        )


def choose_engine(config: TrainConfig, family: Family) -> EngineChoice:
    """The engine that trains, and why."""
    if config.train.engine != "auto" and config.engine_reason:
        return EngineChoice(config.train.engine, config.engine_reason)
    return EngineChoice(*compat.engine_for(_combination(config, family), unsloth_installed=_has_unsloth()))


def import_first(choice: EngineChoice, model: Model) -> None:
    """Import what must come before everything else: Unsloth patches transformers. Keep progress bars out of the log.

    For the fused layers, transformers and PEFT are imported without the packages of UNUSED.
    """
    if choice.engine == "unsloth":
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import unsloth  # noqa: F401 - for its effects
    elif choice.engine == "fused":
        with _hidden(*UNUSED, *(() if model.loads_quantized else ("bitsandbytes",))):
            from peft import import_utils
            from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

            for check in (import_utils.is_bnb_available, import_utils.is_torchao_available):
                check()  # PEFT remembers what it found
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Let packages seem not installed, except those that are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: what an import of it then meets
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _combination(config: TrainConfig, family: Family) -> compat.Combination:
    return compat.Combination.of(config, family, _capability(config))


def warnings_about(config: TrainConfig, family: Family) -> list[str]:
    """Settings that work, but are rarely what a user wants."""
    found = compat.warnings(_combination(config, family))
    return [f"{key}={getattr(config.model, key.split('.')[1])}: {reason}" for key, reason in found]


def _has_unsloth() -> bool:
    return importlib.util.find_spec("unsloth") is not None


def _capability(config: TrainConfig) -> tuple[int, int] | None:
    if config.device == "cpu":
        return None
    import torch

    found: tuple[int, int] = torch.cuda.get_device_capability()
    return found

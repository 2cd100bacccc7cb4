"""The adapter that a run trained, and the base model under it."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import TrainConfig, load
from train.data.prompts import keep_template, stop_ids
from train.errors import UserError, first_line
from train.model.base import fetched
from train.model.load import load_plain, weights_counted
from train.rundir.checkpoints import undamaged
from train.rundir.counter import doing


@dataclass(frozen=True)
class TrainedAdapter:
    config: TrainConfig
    """Of the run that trained it."""
    directory: Path
    base: str
    """Hub id or directory of the base model."""
    revision: str | None
    """Of the hub id."""

    def load_base(self, dtype: Any, device: str | None = None) -> Any:
        """The base model, quantized as it was in training. Raises UserError."""
        source: str | Path = self.base
        try:
            if not Path(
                source
            ).is_dir():  # the adapter comes from another machine: not by transformers, which is silent
                source = fetched(self.base, self.revision, doing("fetching the base model", "bytes"))
            with weights_counted(doing("loading the base model", "weights")):
                return load_plain(self.config, source, dtype, device=device)
        except OSError as error:
            said = f"the base model {self.base} of {self.directory} cannot be loaded: {first_line(error)}"
            raise UserError(said) from error


def find_adapter(run: Path) -> TrainedAdapter:
    """The adapter of a finished run, else of its newest undamaged checkpoint. Raises UserError if there is none."""
    places = itertools.chain([run], undamaged(run / "checkpoints", _warn_of_damage))
    directory = next((place / "adapter" for place in places if (place / "adapter" / _CONFIG).is_file()), None)
    if directory is None:
        raise UserError(f"{run} has no adapter yet", "a run has one after its first checkpoint or at its end")
    recorded = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    base, revision = recorded["base_model_name_or_path"], recorded.get("revision")
    return TrainedAdapter(load(run / "train.json"), directory, base, revision)


def _warn_of_damage(place: Path, reason: str) -> None:
    print(f"warning: the checkpoint {place} is damaged and not used: {reason}", file=sys.stderr, flush=True)


_CONFIG = "adapter_config.json"


def load_adapted(adapter: TrainedAdapter, *, device: str, bare: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) for inference; `bare` leaves the adapter out. Raises UserError."""
    import torch
    from peft import PeftModel

    quantized = adapter.config.model.loads_quantized
    half: Any = torch.bfloat16 if quantized else "auto"
    model = adapter.load_base(torch.float32 if device == "cpu" else half, device)
    if not bare:
        model = PeftModel.from_pretrained(model, adapter.directory)
    return model.eval(), adapter_tokenizer(adapter)


def adapter_tokenizer(adapter: TrainedAdapter) -> Any:
    """The tokenizer of the adapter, with the chat template that asks as in its training."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adapter.directory)
    keep_template(tokenizer, adapter.config.model.thinking)
    return tokenizer


def trained_stop_ids(adapter: TrainedAdapter, tokenizer: Any, config: Any) -> list[int]:
    """The tokens that end an answer, as the adapter's generation_config.json has them; an early version wrote none."""
    try:
        recorded = json.loads((adapter.directory / "generation_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return stop_ids(tokenizer, config)
    found = recorded["eos_token_id"]
    return list(found) if isinstance(found, list) else [found]


def best_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

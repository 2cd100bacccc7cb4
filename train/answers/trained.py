"""The adapter that a run trained, and the base model under it."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train import dist
from train.answers.average import averaged
from train.config import TrainConfig, load
from train.data.prompts import keep_template, stop_ids
from train.dist import World
from train.errors import UserError, first_line
from train.model.base import fetched
from train.model.load import load_plain, weights_counted
from train.rundir.checkpoints import complete, damage, recorded, undamaged
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
            raise UserError(said, code="ZL-MODEL-03") from error


def find_adapter(run: Path, which: str | None = None) -> TrainedAdapter:
    """The adapter of a finished run, else of its newest undamaged checkpoint. Raises UserError if there is none.

    `which` names another: `last`, `best`, `step-400`, or `average:last:5`, the mean of the last five checkpoints.
    """
    directory = _chosen(run, which) if which is not None else _finished_or_newest(run)
    content = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    base, revision = content["base_model_name_or_path"], content.get("revision")
    return TrainedAdapter(load(run / "train.json"), directory, base, revision)


def _finished_or_newest(run: Path) -> Path:
    places = itertools.chain([run], undamaged(run / "checkpoints", _warn_of_damage))
    directory = next((place / "adapter" for place in places if (place / "adapter" / _CONFIG).is_file()), None)
    if directory is None:
        raise UserError(
            f"{run} has no adapter yet", "a run has one after its first checkpoint or at its end", code="ZL-RUN-07"
        )
    return directory


def _chosen(run: Path, which: str) -> Path:
    """The adapter of a checkpoint by name, or the average of some. Raises UserError."""
    here = complete(run / "checkpoints")
    if which.startswith("average:last:"):
        return _average(run, int(which.rpartition(":")[2]))
    if which == "last":
        wanted = here[-1:] or [run / "checkpoints" / "step-0"]
    else:
        wanted = [run / "checkpoints" / (_best(run) if which == "best" else which)]
    place = wanted[0]
    if place not in here:
        listed = ", ".join(path.name for path in here) or "none"
        advice = "`zlaunch pull RUN --checkpoints` brings those of other hosts here"
        raise UserError(
            f"{run.name} has no complete checkpoint {place.name} here; it has: {listed}", advice, code="ZL-RUN-09"
        )
    if reason := damage(place):
        raise UserError(f"the checkpoint {place.name} is damaged: {reason}", "name another one", code="ZL-RUN-09")
    return place / "adapter"


def _best(run: Path) -> str:
    """Name of the checkpoint that measured best, as the result has it, or else the newest checkpoint."""
    try:
        found = json.loads((run / "result.json").read_text(encoding="utf-8")).get("best")
    except (OSError, ValueError):
        newest = complete(run / "checkpoints")[-1:]
        found = ((recorded(newest[0]) or {}).get("progress") or {}).get("best") if newest else None
    if not found or found.get("step") is None:
        raise UserError(
            f"{run.name} has no best checkpoint: no measurements on data.eval were compared",
            "a run compares them by eval.keep_best where it has data.eval and eval.every is not 0",
            code="ZL-RUN-09",
        )
    return f"step-{found['step']}"


def _average(run: Path, count: int) -> Path:
    found = list(itertools.islice(undamaged(run / "checkpoints", _warn_of_damage), count))
    if len(found) < count:
        listed = ", ".join(path.name for path in reversed(found)) or "none"
        raise UserError(
            f"{run.name} has {len(found)} of the {count} checkpoints to average: {listed}",
            f"train with train.keep_checkpoints: {count}",
            code="ZL-RUN-09",
        )
    return averaged(run, found[::-1])


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


CHECKPOINT = re.compile(r"best|last|step-\d+|average:last:[1-9]\d*")
"""What `find_adapter` takes."""


def named(text: str) -> str:
    """A value of `--checkpoint`. Raises ArgumentTypeError."""
    if not CHECKPOINT.fullmatch(text):
        raise argparse.ArgumentTypeError("expected best, last, step-N or average:last:N")
    return text


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """`--checkpoint`, for the programs that use an adapter."""
    parser.add_argument("--checkpoint", type=named, help="best, last, step-N or average:last:N instead of the adapter")


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


def device_and_world(named: str) -> tuple[str, World]:
    """(device, this rank's place among those that torchrun started) for `--device`. Raises UserError."""
    device = best_device() if named == "auto" else named
    world = dist.from_environment(device)
    dist.prepare(world)
    dist.check_device(world)
    return device, world


def best_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

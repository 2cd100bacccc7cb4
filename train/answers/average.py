"""Average the adapters of a run's last checkpoints: each weight is the mean of theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.errors import UserError

WEIGHTS = "adapter_model.safetensors"


def averaged(run: Path, checkpoints: Sequence[Path]) -> Path:
    """Directory of the mean of these checkpoints' adapters, made where it does not exist. Raises UserError.

    The matrices of LoRA are averaged each by itself, as checkpoints of one training are near each other; so the
    adapter keeps its rank. Whether it is any better, its scores say.
    """
    names = [place.name for place in checkpoints]
    place = run / "averages" / "_".join(name.removeprefix("step-") for name in names)
    if (place / "adapter" / "adapter_config.json").is_file():
        return place / "adapter"
    temporary = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(checkpoints[-1] / "adapter", temporary / "adapter")
        _write_mean([checkpoint / "adapter" / WEIGHTS for checkpoint in checkpoints], temporary / "adapter" / WEIGHTS)
        _tell_in_card(temporary / "adapter" / "README.md", names)
        (temporary / "average.json").write_text(json.dumps({"checkpoints": names}) + "\n", encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        temporary.rename(place)
    except OSError as error:
        raise UserError(
            f"the average cannot be written to {place}: {error.strerror or error}", code="ZL-FILE-02"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place / "adapter"


def _write_mean(files: Sequence[Path], out: Path) -> None:
    """One tensor at a time: adapters with whole modules beside them are large."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    opened: list[Any] = [safe_open(file, "pt") for file in files]  # it has no types
    names = [sorted(one.keys()) for one in opened]
    if any(other != names[0] for other in names):
        raise UserError("the checkpoints hold other weights, so they have no average", code="ZL-RUN-09")
    mean = {}
    for name in names[0]:
        tensors = [one.get_tensor(name) for one in opened]
        if any(tensor.shape != tensors[0].shape for tensor in tensors):
            raise UserError(f"the checkpoints hold other shapes of {name}, so they have no average", code="ZL-RUN-09")
        mean[name] = torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)
    save_file(mean, out, metadata=opened[0].metadata())


def _tell_in_card(card: Path, names: Sequence[str]) -> None:
    """The scores of the card are of the run's own adapter."""
    if card.is_file():
        note = f"\n\nThe weights are the mean of those of {', '.join(names)}. Scores above are of other weights.\n"
        card.write_text(card.read_text(encoding="utf-8").rstrip() + note, encoding="utf-8")

"""Load the base model with the adapter that a run trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train.config import load


def load_adapted(run: Path, *, device: str, bare: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of a run's newest adapter, with plain transformers and PEFT; `bare`: the base model alone.

    The base is quantised as the run had it. Raises UserError.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train.errors import UserError
    from train.model.base import register_types
    from train.model.load import keep_four_bit_unpacked, quantization_options

    adapter, trained = newest_adapter(run), load(run / "train.json")
    config = adapter / "adapter_config.json"
    if not config.is_file():
        raise UserError(f"{adapter} holds no adapter", "a run has one after its first checkpoint or at its end")
    recorded = json.loads(config.read_text(encoding="utf-8"))
    quantised = trained.model.quantization != "none"
    dtype: Any = torch.float32 if device == "cpu" else torch.bfloat16 if quantised else "auto"
    options: dict[str, Any] = {"revision": recorded.get("revision"), "dtype": dtype}
    options["trust_remote_code"] = trained.model.trust_remote_code
    if quantised:
        options |= {**quantization_options(trained, dtype), "device_map": {"": device}}
    base = recorded["base_model_name_or_path"]
    register_types(Path(base))
    try:
        model = AutoModelForCausalLM.from_pretrained(base, **options)
    except OSError as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"the base model {base} of {adapter} cannot be loaded: {first}") from error
    keep_four_bit_unpacked(model)
    if not bare:
        model = PeftModel.from_pretrained(model, adapter)
    return (model if quantised else model.to(device)).eval(), AutoTokenizer.from_pretrained(adapter)


def newest_adapter(run: Path) -> Path:
    """The finished adapter, else that of the newest complete checkpoint."""
    from train.rundir import complete

    if (run / "adapter" / "adapter_config.json").is_file():
        return run / "adapter"
    found = complete(run / "checkpoints")
    return found[-1] / "adapter" if found else run / "adapter"


def any_device() -> str:
    """`cuda` where there is a GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def trained_system(run: Path) -> str | None:
    """The system message that every record of the run was trained with."""
    from train import config

    return config.load(run / "train.json").data.system

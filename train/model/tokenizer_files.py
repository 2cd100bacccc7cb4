"""The files of a tokenizer without those of the weights: what a look at the records needs of a base model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from train.config import TrainConfig
from train.errors import UserError
from train.hub.cachedir import cache_directory
from train.hub.download import Fetched, download
from train.model import random
from train.model.gguf import find_gguf


def tokenizer_files(
    config: TrainConfig, temporary: Path, texts: Callable[[], Iterable[str]], fetched: Fetched | None = None
) -> tuple[str, dict[str, Any]]:
    """(directory to load from, options of from_pretrained). Fetches or makes only what the tokenizer needs.

    `temporary` takes what is made; `texts` are the records, for a tokenizer of source `random`. Raises UserError.
    """
    model = config.model
    if model.source == "random":
        random.make_random(temporary, texts(), config.train.seed)
        return str(temporary), {}
    if model.source == "package":
        gguf, version = find_gguf(model.path)
        made = cache_directory() / "models" / f"{model.path}-{version}"
        return (str(made), {}) if made.is_dir() else (str(gguf.parent), {"gguf_file": gguf.name})
    local = Path(model.path).expanduser()
    if local.is_dir():
        return _converted(local, temporary), {}
    return _converted(download(model, weights=False, fetched=fetched), temporary, weights=False), {}


def _converted(local: Path, temporary: Path, *, weights: bool = True) -> str:
    """The directory itself, or the converted tokenizer of an original ChatGLM or Baichuan checkpoint."""
    from train.original import conversion

    if not (local / "config.json").is_file() or not conversion.needs_conversion(local):
        return str(local)
    from train.original.checkpoint_files import ConversionError, read_source
    from train.original.layouts import recipe_for

    try:
        source = read_source(local, weights=weights)
        recipe = recipe_for(source)
        conversion.write_tokenizer(source, recipe, temporary)
        conversion.write_config(source, recipe, temporary)
    except ConversionError as error:
        raise UserError(str(error), code="ZL-MODEL-04") from None
    return str(temporary)

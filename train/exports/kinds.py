"""Write a run's adapter for use elsewhere: the kinds of export, and the directory they go to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.answers.generation import NO_PENALTIES, stop_ids
from train.answers.trained import TrainedAdapter, adapter_tokenizer, find_adapter
from train.data.prompts import render
from train.errors import UserError, is_disk_full
from train.exports import ollama
from train.exports.merge import Print, merge
from train.model.base import read_json, register_types
from train.original.portable import make_portable


def export(run: Path, kind: str, out: Path, tell: Print = print) -> None:
    """Write the export to the new directory `out`, complete or not at all. Raises UserError."""
    out = out.absolute()
    adapter = find_adapter(run.resolve())
    temporary = _temporary_for(out)
    try:
        EXPORTS[kind](adapter, temporary, tell)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except Exception as error:
        if is_disk_full(error):
            advice = "free some space, or name a directory elsewhere with --out"
            raise UserError(f"{out} cannot be written: no space left on the disk", advice) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    tell(f"{kind}: {out}")


def _temporary_for(out: Path) -> Path:
    """A new directory beside `out`, which must be free itself. Raises UserError."""
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists already", "name a new directory with --out, or remove this one")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        advice = "name a directory elsewhere with --out"
        raise UserError(f"{out} cannot be written: {error.strerror}", advice) from error
    return temporary


def _export_adapter(adapter: TrainedAdapter, place: Path, tell: Print) -> None:
    shutil.copytree(adapter.directory, place, dirs_exist_ok=True)
    make_portable(place, adapter.base, adapter.revision)
    tell(f"an adapter for {adapter.base}")
    if (read_json(place / "adapter_config.json") or {}).get("target_parameters"):
        tell("it adapts experts as transformers 5 holds them; for transformers 4, export --to merged")


def _export_merged(adapter: TrainedAdapter, place: Path, tell: Print) -> None:
    """Base and adapter in one model: safetensors, tokenizer and generation settings."""
    tokenizer = adapter_tokenizer(adapter)
    model = merge(adapter, tell)
    settings = model.generation_config
    stop = stop_ids(tokenizer, model.config)
    settings.eos_token_id = stop if len(stop) > 1 else stop[0]
    settings.pad_token_id = tokenizer.pad_token_id
    settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None
    settings.update(**NO_PENALTIES)
    longest = getattr(model.config, "max_position_embeddings", None)
    tokenizer.model_max_length = longest or tokenizer.model_max_length  # Unsloth sets it to the length of training
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    make_portable(place, adapter.base, adapter.revision)
    size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    tell(f"{size / 1e9:.2f} GB of weights in {model.dtype}")


def _export_ollama(adapter: TrainedAdapter, place: Path, tell: Print) -> None:
    """The merged model with a Modelfile beside it."""
    from transformers import AutoConfig

    register_types(Path(adapter.base))
    config = AutoConfig.from_pretrained(adapter.base, revision=adapter.revision)
    tokenizer = adapter_tokenizer(adapter)
    # both checks come before the merge, which takes minutes
    template = ollama.measure(lambda turns, **options: render(tokenizer, turns, **options), _added_bos(tokenizer))
    ollama.check_supported(config.to_dict())
    _export_merged(adapter, place, tell)
    stop = [tokenizer.convert_ids_to_tokens(token) for token in stop_ids(tokenizer, config)]
    text = ollama.modelfile(template, stop, adapter.config.data.system)
    (place / "Modelfile").write_text(text, encoding="utf-8")
    tell(f"ollama create {adapter.config.run_id} -f Modelfile     (in the directory of the export)")


def _added_bos(tokenizer: Any) -> str:
    """The begin-of-sequence token if the tokenizer, and so Ollama, adds one to a text by itself; else ""."""
    ids = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if len(ids) > 1 and ids[0] == tokenizer.bos_token_id else ""


EXPORTS: dict[str, Callable[[TrainedAdapter, Path, Print], None]] = {
    "adapter": _export_adapter,
    "merged": _export_merged,
    "ollama": _export_ollama,
}

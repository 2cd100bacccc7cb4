"""Write a run's adapter for use elsewhere: the kinds of export, and the directory they go to."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.answers.generation import saved_settings
from train.answers.trained import TrainedAdapter, adapter_tokenizer, find_adapter, named, trained_stop_ids
from train.data.prompts import prompt_text, render
from train.errors import UserError, is_disk_full
from train.exports import ollama, probes
from train.exports.merge import Print, merge
from train.model.base import read_json, register_types
from train.original.portable import make_portable


def checkpoint_name(text: str) -> str:
    """A value of `--checkpoint`; raises argparse's error for what names none."""
    return named(text)


def export(run: Path, kind: str, out: Path, tell: Print = print, which: str | None = None) -> None:
    """Write the export to the new directory `out`, complete or not at all. Raises UserError.

    `which`: another adapter than the run's own, as `find_adapter` takes it.
    """
    out = out.absolute()
    adapter = find_adapter(run.resolve(), which)
    temporary = _temporary_for(out)
    try:
        EXPORTS[kind](adapter, adapter_tokenizer(adapter), temporary, tell)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except Exception as error:
        if is_disk_full(error):
            advice = "free some space, or name a directory elsewhere with --out"
            raise UserError(f"{out} cannot be written: no space left on the disk", advice, code="ZL-FILE-03") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    tell(f"{kind}: {out}")


def _temporary_for(out: Path) -> Path:
    """A new directory beside `out`, which must be free itself. Raises UserError."""
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(
                f"{out} exists already", "name a new directory with --out, or remove this one", code="ZL-FILE-01"
            )
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        advice = "name a directory elsewhere with --out"
        raise UserError(f"{out} cannot be written: {error.strerror}", advice, code="ZL-FILE-02") from error
    return temporary


def _export_adapter(adapter: TrainedAdapter, tokenizer: Any, place: Path, tell: Print) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(adapter.directory, place, dirs_exist_ok=True)
    make_portable(place, adapter.base, adapter.revision)
    if AutoTokenizer.from_pretrained(place).chat_template != tokenizer.chat_template:
        tokenizer.save_pretrained(place)  # an earlier version saved the chat template as it found it
    probes.record(adapter, "adapter", place, tokenizer)
    tell(f"an adapter for {adapter.base}")
    if (read_json(place / "adapter_config.json") or {}).get("target_parameters"):
        tell("it adapts experts as transformers 5 holds them; for transformers 4, export --to merged")


def _export_merged(adapter: TrainedAdapter, tokenizer: Any, place: Path, tell: Print) -> None:
    """Base and adapter in one model: safetensors, tokenizer and generation settings."""
    _write_merged(adapter, tokenizer, place, tell)
    probes.record(adapter, "merged", place, tokenizer)


def _write_merged(adapter: TrainedAdapter, tokenizer: Any, place: Path, tell: Print) -> None:
    model = merge(adapter, tell)
    stop = trained_stop_ids(adapter, tokenizer, model.config)
    sampling = {"temperature": None, "top_p": None, "top_k": None}  # the base model's
    model.generation_config.update(**saved_settings(tokenizer, stop), **sampling)
    longest = getattr(model.config, "max_position_embeddings", None)
    tokenizer.model_max_length = longest or tokenizer.model_max_length  # Unsloth sets it to the length of training
    tell("writing the merged model")
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    make_portable(place, adapter.base, adapter.revision)
    size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    tell(f"{size / 1e9:.2f} GB of weights in {model.dtype}")


def _export_ollama(adapter: TrainedAdapter, tokenizer: Any, place: Path, tell: Print) -> None:
    """The merged model with a Modelfile beside it."""
    from transformers import AutoConfig

    register_types(Path(adapter.base))
    config = AutoConfig.from_pretrained(adapter.base, revision=adapter.revision)
    # both checks come before the merge, which takes minutes
    bos = _begins_with(tokenizer)

    def shown(turns: Any, **options: Any) -> str:
        return render(tokenizer, turns, **options)

    template = ollama.measure(shown, bos)
    ollama.check_supported(config.to_dict())
    _write_merged(adapter, tokenizer, place, tell)
    _write_bos(place / "tokenizer_config.json", tokenizer, bos)
    stop = [tokenizer.convert_ids_to_tokens(token) for token in trained_stop_ids(adapter, tokenizer, config)]
    text = ollama.modelfile(template, stop, adapter.config.data.system)
    (place / "Modelfile").write_text(text, encoding="utf-8")

    def asked(exported: Any, turns: Any) -> list[int]:
        return list(exported(bos + template.render(turns), add_special_tokens=False)["input_ids"])

    limits = ollama.limits(template, shown, bos)
    probes.record(adapter, "ollama", place, tokenizer, asked, limits)
    for limit in limits:
        tell(f"note: {limit}")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "", adapter.config.run_id).lstrip("-._")  # Ollama takes ASCII only
    tell(f"ollama create {name} -f Modelfile     (in the directory of the export)")


def _begins_with(tokenizer: Any) -> str:
    """The begin-of-sequence token if prompts begin with it, else ""."""
    bos = tokenizer.bos_token
    return str(bos) if bos and prompt_text(tokenizer, [("user", "a")]).startswith(bos) else ""


def _write_bos(file: Path, tokenizer: Any, bos: str) -> None:
    """Let Ollama begin prompts as in training.

    Its converter copies `add_bos_token` if there is a `bos_token`. Without that key its runner adds token 0.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    content |= {"add_bos_token": bool(bos), "bos_token": tokenizer.bos_token or tokenizer.eos_token}
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


EXPORTS: dict[str, Callable[[TrainedAdapter, Any, Path, Print], None]] = {
    "adapter": _export_adapter,
    "merged": _export_merged,
    "ollama": _export_ollama,
}

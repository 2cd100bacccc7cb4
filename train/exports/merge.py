"""Write a run's adapter in another form: an adapter directory, merged weights, or an Ollama model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import TrainConfig, load
from train.errors import UserError, is_disk_full
from train.exports import ollama

Say = Callable[[str], None]


@dataclass(frozen=True)
class Learned:
    """What a run left to be exported."""

    config: TrainConfig
    adapter: Path
    base: str
    revision: str | None


def learned(run: Path) -> Learned:
    """Raises UserError if the run has no adapter."""
    from train.answers.trained import newest_adapter

    adapter = newest_adapter(run)
    file = adapter / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"{run} has no adapter yet", "a run has one after its first checkpoint or at its end")
    recorded = json.loads(file.read_text(encoding="utf-8"))
    return Learned(load(run / "train.json"), adapter, recorded["base_model_name_or_path"], recorded["revision"])


def export_adapter(found: Learned, place: Path, say: Say) -> None:
    shutil.copytree(found.adapter, place, dirs_exist_ok=True)
    say(f"an adapter for {found.base}")


def export_merged(found: Learned, place: Path, say: Say) -> None:
    """safetensors, tokenizer and generation settings of base and adapter in one."""
    from transformers import AutoTokenizer

    from train.answers.generation import NO_PENALTIES, stop_ids

    tokenizer = AutoTokenizer.from_pretrained(found.adapter)
    model = merge(found, say)
    settings = model.generation_config
    stop = stop_ids(tokenizer, model.config)
    settings.eos_token_id = stop if len(stop) > 1 else stop[0]
    settings.pad_token_id = tokenizer.pad_token_id
    settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None
    settings.update(**NO_PENALTIES)
    longest = getattr(model.config, "max_position_embeddings", None)
    tokenizer.model_max_length = longest or tokenizer.model_max_length  # Unsloth leaves the length of training there
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    _keep_marks(Path(found.base), place)
    say(f"{sum(file.stat().st_size for file in place.glob('*.safetensors')) / 1e9:.2f} GB of weights in {model.dtype}")


def export_ollama(found: Learned, place: Path, say: Say) -> None:
    from transformers import AutoConfig, AutoTokenizer

    from train.answers.generation import stop_ids
    from train.data.prompts import render
    from train.model.base import register_types

    register_types(Path(found.base))
    config = AutoConfig.from_pretrained(found.base, revision=found.revision)
    tokenizer = AutoTokenizer.from_pretrained(found.adapter)
    bos = _added_first(tokenizer)
    template = ollama.template_of(lambda turns, **options: render(tokenizer, turns, **options), bos)
    ollama.check(config.model_type)  # before the minutes that the merge takes
    export_merged(found, place, say)
    stop = [tokenizer.convert_ids_to_tokens(token) for token in stop_ids(tokenizer, config)]
    text = ollama.modelfile(template, stop, found.config.data.system)
    (place / "Modelfile").write_text(text, encoding="utf-8")
    say(f"ollama create {found.config.run_id} -f Modelfile     (in the directory of the export)")


def _added_first(tokenizer: Any) -> str:
    """The token that the tokenizer, and so Ollama, puts before a text by itself; "" for those that add none."""
    ids = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if len(ids) > 1 and ids[0] == tokenizer.bos_token_id else ""


EXPORTS: dict[str, Callable[[Learned, Path, Say], None]] = {
    "adapter": export_adapter,
    "merged": export_merged,
    "ollama": export_ollama,
}


def merge(found: Learned, say: Say) -> Any:
    """The base model with the adapter's weights added, in the dtype of the base (bfloat16 after QLoRA)."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from train.model.base import register_types
    from train.model.load import keep_four_bit_unpacked, quantization_options

    register_types(Path(found.base))
    quantised = found.config.model.quantization != "none"
    options: dict[str, Any] = {"revision": found.revision, "dtype": torch.bfloat16 if quantised else "auto"}
    options |= quantization_options(found.config, torch.bfloat16)
    options["trust_remote_code"] = found.config.model.trust_remote_code
    try:
        base = AutoModelForCausalLM.from_pretrained(found.base, **options)
    except OSError as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"the base model {found.base} cannot be loaded: {first}") from error
    keep_four_bit_unpacked(base)
    tied = base.config.tie_word_embeddings
    adapted = PeftModel.from_pretrained(base, found.adapter)
    trained = _logits(adapted)
    if quantised:
        del adapted, base  # never two models in memory
        base = AutoModelForCausalLM.from_pretrained(found.base, **options).dequantize()
        base.to(torch.bfloat16)
        _forget_quantisation(base)
        adapted = PeftModel.from_pretrained(base, found.adapter)
    merged = adapted.merge_and_unload(safe_merge=True)
    if tied and merged.get_input_embeddings().weight is not merged.get_output_embeddings().weight:
        merged.config.tie_word_embeddings = False  # one of them was trained whole (modules_to_save)
    difference = (trained - _logits(merged)).abs().max().item()
    weights = f"{found.config.model.quantization} weights" if quantised else "not quantised"
    say(
        f"logits of the merged model ({merged.dtype}) and of the trained one ({weights}): "
        f"largest difference {difference:.2e}, {difference / trained.abs().max().item():.2%} of the largest logit"
    )
    return merged


def _logits(model: Any) -> Any:
    """Of some fixed tokens, [2, 16, vocabulary] in float32."""
    import torch

    model.eval()
    size = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(1, 33) * 37 % size).reshape(2, 16)
    with torch.no_grad():
        return model(input_ids=ids.to(model.device)).logits.float().cpu()


def _forget_quantisation(model: Any) -> None:
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None


def _keep_marks(base: Path, place: Path) -> None:
    """A converted checkpoint says of what family it is; transformers keeps such keys, this makes sure of it."""
    from train.families import MARKER
    from train.model.base import read_config

    before, after = read_config(base) or {}, read_config(place) or {}
    if MARKER in before and MARKER not in after:
        (place / "config.json").write_text(json.dumps({**after, MARKER: before[MARKER]}, indent=2), encoding="utf-8")


def export(run: Path, kind: str, out: Path, say: Say = print) -> Path:
    """Write the export to the new directory `out`, complete or not at all. Raises UserError."""
    out = out.absolute()
    found = learned(run.resolve())
    temporary = _room_for(out)
    try:
        EXPORTS[kind](found, temporary, say)
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
    say(f"{kind}: {out}")
    return out


def _room_for(out: Path) -> Path:
    """An empty directory beside `out`, which is to be new. Raises UserError."""
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists already", "name a directory that does not exist with --out, or remove it")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        said = f"{out} cannot be written: {error.strerror}"
        raise UserError(said, "name a directory elsewhere with --out") from error
    return temporary

"""Turn every source of a base model into a local directory in transformers' format, once per node.

Downloads and conversions happen under a lock: one rank of a node works, the others find its result. The ranks must not
have formed a group yet, because then `save_pretrained` of transformers writes only on rank 0, and any rank may be the
one that works.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from train import families
from train.compat import ADVICE, continued
from train.config import Model, TrainConfig
from train.errors import UserError
from train.families import Family
from train.hub import hub
from train.hub.cachedir import cache_directory, locked, suppress_if_there
from train.hub.download import Fetched, download
from train.model.gguf import dequantize, find_gguf, gguf_architecture
from train.model.random import make_random
from train.rundir.counter import count_in, doing
from train.rundir.run_files import RunDir

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""OWNER/NAME, by which others can load a model."""


@dataclass(frozen=True)
class BaseModel:
    directory: Path
    name: str
    """What the adapter records as its base: the hub id if there is one, else the directory."""
    revision: str | None = None
    """Of the hub id."""


def local_directory(config: TrainConfig, rundir: RunDir, texts: Callable[[], Iterable[str]]) -> BaseModel:
    """The base model on this node's disk. Raises UserError if there is no such model.

    `texts` are the training records: source `random` makes a tokenizer of them.
    """
    return _SOURCES[config.model.source](config, rundir, texts)


def _random(config: TrainConfig, rundir: RunDir, texts: Callable[[], Iterable[str]]) -> BaseModel:
    _once(rundir.base_model, lambda place: make_random(place, texts(), config.train.seed))
    return BaseModel(rundir.base_model, str(rundir.base_model))


def _hub(config: TrainConfig, rundir: RunDir, texts: Callable[[], Iterable[str]]) -> BaseModel:
    path = Path(config.model.path).expanduser()
    if path.is_dir():
        _check_complete(path)
        return _converted(BaseModel(path.resolve(), str(path.resolve())), rundir)
    count_in(rundir)
    counted = doing("fetching the base model", "bytes", "model")  # by the one rank of the node that downloads
    (held,) = hub.once(f"model-{_hub_key(config.model)}", lambda: [str(download(config.model, fetched=counted))])
    directory = Path(held)
    if config.model.source == "modelscope":  # transformers cannot load the adapter's base by such an id
        return _converted(BaseModel(directory, str(directory)), rundir)
    return _converted(BaseModel(directory, config.model.path, config.model.revision), rundir)


def fetched(path: str, revision: str | None, counted: Fetched) -> Path:
    """The local directory of a base model that an adapter names by its hub id. Raises UserError."""
    return download(Model(path=path, revision=revision), fetched=counted)


def _converted(base: BaseModel, rundir: RunDir) -> BaseModel:
    """The model for plain transformers: a checkpoint in ChatGLM's or Baichuan's own layout is converted, once.

    The adapter then records the converted directory as its base, because the original has other layer names.
    """
    config = read_config(base.directory)
    if config is None or not families.needs_conversion(config):
        return base
    from train.original.checkpoint_files import ConversionError
    from train.original.conversion import converted

    def tell(text: str) -> None:
        print(text, flush=True)
        rundir.event("convert", message=text)

    try:
        place = converted(base.directory, tell, cache_directory())
    except ConversionError as error:
        raise UserError(f"model.path: {error}", code="ZL-MODEL-02") from error
    return BaseModel(place, str(place))


def read_config(directory: Path) -> dict[str, Any] | None:
    """config.json of a model's directory; None if it cannot be read."""
    return read_json(directory / "config.json")


def read_json(file: Path) -> dict[str, Any] | None:
    """The JSON object in `file`; None if it cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def recorded_adapter(place: Path) -> dict[str, Any]:
    """The adapter_config.json of a LoRA adapter. Raises UserError if there is no such adapter."""
    advice = "name the adapter/ of a finished run"
    if not (place / "adapter_config.json").is_file():
        raise UserError(f"lora.adapter: {place} has no adapter_config.json", advice, code="ZL-MODEL-07")
    if not any(place.glob("adapter_model.*")):
        raise UserError(f"lora.adapter: {place} has no adapter_model.safetensors", advice, code="ZL-MODEL-07")
    recorded = read_json(place / "adapter_config.json") or {}
    kind = recorded.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"lora.adapter: {place}/adapter_config.json is not of a LoRA adapter (peft_type: {kind})",
            advice,
            code="ZL-MODEL-07",
        )
    return recorded


def with_adapter(config: TrainConfig) -> tuple[TrainConfig, str]:
    """(the configuration with the settings of the adapter that it continues, those that were not the job's).

    The launcher has done the same where it could read the adapter. Raises UserError for settings that differ.
    """
    if config.lora.adapter is None:
        return config, ""
    place = Path(config.lora.adapter).expanduser()
    found = continued(config.lora, recorded_adapter(place))
    if found.refused:
        raise UserError(f"lora.adapter: {place}: {'; '.join(found.refused)}", ADVICE, code="ZL-MODEL-07")
    if found.only_peft and config.train.engine not in ("auto", "peft"):
        said = f"lora.adapter: {place}: only PEFT continues an adapter with {found.only_peft}"
        raise UserError(said, "set train.engine: peft", code="ZL-MODEL-07")
    train = replace(config.train, engine="peft") if found.only_peft else config.train
    return replace(config, lora=found.lora, train=train), str(found)


def family_of_job(config: TrainConfig) -> Family:
    """The family of the job's model; only its config.json is fetched for that.

    If that fails, the family is one that takes everything: loading the model reports the problem better.
    """
    model = config.model
    if model.source == "random":
        found: dict[str, Any] | None = {"model_type": "llama"}
    elif model.source == "package":
        found = {"model_type": gguf_architecture(find_gguf(model.path)[0])}
    elif Path(model.path).expanduser().is_dir():
        found = read_config(Path(model.path).expanduser())
    else:
        found = _fetched_config(model)
    return families.FAMILIES[0] if found is None else families.family_of(found)


def _fetched_config(model: Model) -> dict[str, Any] | None:
    def fetch() -> list[str]:
        try:
            if model.source == "modelscope":
                from modelscope.hub.file_download import model_file_download as download
            else:
                from huggingface_hub import hf_hub_download as download
            return [str(download(model.path, "config.json", revision=model.revision))]
        except Exception:  # offline, no such model, no such package: these errors have no common base class
            return []

    found = hub.once(f"config-{_hub_key(model)}", fetch)
    return read_config(Path(found[0]).parent) if found else None


def _hub_key(model: Model) -> str:
    return f"{model.source}-{model.path}@{model.revision or 'newest'}"


def family_at(directory: Path) -> Family:
    """The family of a model on this disk."""
    return families.family_of(read_config(directory) or {})


def register_types(directory: Path) -> None:
    """Register this project's own model types with transformers."""
    if (read_config(directory) or {}).get("model_type") == "alibi_llama":
        from train.original import alibi

        alibi.register()


def _package(config: TrainConfig, rundir: RunDir, texts: Callable[[], Iterable[str]]) -> BaseModel:
    gguf, version = find_gguf(config.model.path)
    place = cache_directory() / "models" / f"{config.model.path}-{version}"
    _once(place, lambda temporary: dequantize(gguf, temporary))
    return BaseModel(place, str(place))


_SOURCES: dict[str, Callable[[TrainConfig, RunDir, Callable[[], Iterable[str]]], BaseModel]] = {
    "random": _random,
    "huggingface": _hub,
    "modelscope": _hub,
    "package": _package,
}


def _check_complete(path: Path) -> None:
    """Raise UserError for a directory that is not a model, or lacks shards that its index names."""
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise UserError(
                f"model.path: {path} holds an adapter, not a model",
                "name its base model here, and the adapter as lora.adapter to train it further",
                code="ZL-MODEL-03",
            )
        raise UserError(
            f"model.path: {path} has no config.json",
            "it must be a directory in transformers' format",
            code="ZL-MODEL-02",
        )
    if read_config(path) is None:
        raise UserError(
            f"model.path: {path / 'config.json'} is not a JSON object", "download it again", code="ZL-MODEL-02"
        )
    index = _index_read(path)
    if index is None:
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"model.path: {index} is not a readable index", "download it again", code="ZL-MODEL-02"
        ) from None
    missing = sorted(shard for shard in shards if not (path / shard).is_file())
    if missing:
        raise UserError(
            f"model.path: {path} lacks {', '.join(missing)}, which {index.name} names",
            "download them",
            code="ZL-MODEL-02",
        )


def _index_read(path: Path) -> Path | None:
    """The index that transformers would read; None if the weights are one file.

    A download may hold the index of *.bin files beside safetensors, without those files.
    """
    for weights in ("model.safetensors", "pytorch_model.bin"):
        if (path / weights).is_file():
            return None
        if (path / f"{weights}.index.json").is_file():
            return path / f"{weights}.index.json"
    return None


def _once(place: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a temporary directory and rename it to `place`, unless that exists already."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.parent / f".{place.name}.lock"):
        if place.exists():
            return
        temporary = place.with_name(f".{place.name}.{os.urandom(4).hex()}.tmp")
        temporary.mkdir()
        try:
            make(temporary)
            with suppress_if_there(place):
                temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

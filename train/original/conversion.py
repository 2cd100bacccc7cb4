"""Convert ChatGLM2/3 and Baichuan checkpoints from their original layouts to those of transformers.

    python -m train.convert SRC DST

It reads `pytorch_model*.bin` or safetensors one shard at a time, so memory peaks at about one shard, and runs no remote
code. A damaged, incomplete or unknown source is refused before anything is written, with the name of the file at fault.
DST appears only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from train import families
from train.hub.cachedir import cache_directory, locked, suppress_if_there
from train.original import sentencepiece_bpe
from train.original.checkpoint_files import ConversionError, Source, Tensors, check_file, load_shard, read_source
from train.original.layouts import Recipe, Shapes, recipe_for, tokenizer_for
from train.original.portable import make_portable

VERSION = 3
"""Version of the converter, a part of the cache key: a better converter converts again."""

Report = Callable[[str], None]


def convert(src: str | os.PathLike[str], dst: str | os.PathLike[str], report: Report = print) -> Path:
    """Convert the checkpoint in directory `src` into the new directory `dst`; returns `dst`.

    Raises ConversionError (and leaves nothing behind) or OSError. If two processes convert to one `dst`, the second
    waits and then learns that it exists.
    """
    target = Path(dst).absolute()
    source = read_source(Path(src))
    recipe = recipe_for(source)
    report(f"{source.root}: {recipe.family.title}, {len(source.shards)} shard(s) -> {recipe.config.architectures[0]}")
    with _lock(target) as held:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConversionError(f"{target} exists already: name a directory that does not exist, or remove it")
        inventory(source, recipe)
        _check_free_space(source, target)
        suffix = "" if held else f".{os.urandom(4).hex()}"
        partial = target.with_name(f".{target.name}{suffix}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # left over from a killed conversion
        partial.mkdir(parents=True)
        try:
            write_weights(source, recipe, partial, report)
            write_tokenizer(source, recipe, partial)
            write_config(source, recipe, partial)
            make_portable(partial)
            _sync(partial)
            with suppress_if_there(target / "config.json"):
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    report(f"{target}: complete")
    return target


def converted(
    path: str | os.PathLike[str], report: Report = print, cache: str | os.PathLike[str] | None = None
) -> Path:
    """Return `path` itself if transformers can read it, else its conversion in the cache, made on first use.

    The cache is `cache`, else that of train/hub/cachedir.py. Its key is the checkpoint's path with the name, size and
    time of each file. Every rank may call this: one converts, the others wait.
    """
    root = Path(path)
    if not needs_conversion(root):
        return root
    place = Path(cache or cache_directory()) / "converted"
    target = place / f"{root.resolve().name}-{_fingerprint(root)}"
    with _lock(target, "use"):
        if not target.is_dir():
            report(f"{root} is in its original layout: converting it once into {target}")
            convert(root, target, report)
        else:
            report(f"{root} is in its original layout: using its conversion {target}")
    return target


def needs_conversion(path: str | os.PathLike[str]) -> bool:
    """Whether the directory holds a checkpoint in an original layout. Without a config.json it does not."""
    try:
        config = json.loads((Path(path) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and families.needs_conversion(config)


def _fingerprint(root: Path) -> str:
    digest = hashlib.sha256(f"{VERSION} {root.resolve()}".encode())
    for file in sorted(root.iterdir()):
        if file.is_file():
            digest.update(f"\0{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _lock(target: Path, kind: str = "convert") -> Iterator[bool]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.{kind}.lock")) as held:
        yield held


def _check_free_space(source: Source, target: Path) -> None:
    needed = sum(shard.stat().st_size for shard in source.shards)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise ConversionError(f"{target.parent}: needs {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free")


def _sync(directory: Path) -> None:
    for path in [*directory.iterdir(), directory]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def inventory(source: Source, recipe: Recipe) -> None:
    """Refuse a source with a missing, surplus or misshapen tensor. Reads only headers."""
    made: Shapes = {}
    for shard in source.shards:
        tensors = load_shard(shard)
        lost = source.listed.get(shard.name, frozenset()) - tensors.keys()
        if lost:
            raise ConversionError(f"{shard}: lacks {sorted(lost)[0]}, which its index lists; download it again")
        for name, tensor in tensors.items():
            try:
                # On the meta device, renaming yields names and shapes without touching data.
                made |= {new: tuple(t.shape) for new, t in recipe.rename(name, tensor.to("meta")).items()}
            except (KeyError, RuntimeError):
                what = f"{name} {tuple(tensor.shape)}"
                raise ConversionError(f"{shard}: {what} is not a tensor of {recipe.family.title}") from None
    for name, shape in recipe.shapes.items():
        if name not in made:
            raise ConversionError(f"{source.root}: no file holds the tensor {name}; the checkpoint is incomplete")
        if made[name] != shape:
            raise ConversionError(f"{source.root}: {name} has the shape {made[name]}, but config.json says {shape}")
    for name in sorted(made.keys() - recipe.shapes.keys()):
        raise ConversionError(f"{source.root}: holds a tensor for {name}, more layers than config.json says")


def write_weights(source: Source, recipe: Recipe, target: Path, report: Report) -> None:
    """Write each original shard as one safetensors file, from the mapped source."""
    places: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(source.shards, 1):
        name = f"model-{number:05d}-of-{len(source.shards):05d}.safetensors"
        made: Tensors = {}
        for old, tensor in load_shard(shard).items():
            made |= recipe.rename(old, tensor)
        save_file({k: v.contiguous() for k, v in made.items()}, target / name, metadata={"format": "pt"})
        places |= dict.fromkeys(made, name)
        total += sum(tensor.nbytes for tensor in made.values())
        report(f"  {number}/{len(source.shards)} {shard.name} -> {name}")
        del made
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    _json(target / "model.safetensors.index.json", index)


def write_config(source: Source, recipe: Recipe, target: Path) -> None:
    """Write config.json with the family's marker, and generation_config.json with its stop tokens."""
    config = recipe.config
    config.dtype = source.config.get("torch_dtype") or source.config.get("dtype") or "float16"
    text = {**config.to_diff_dict(), **json.loads(config.to_json_string(use_diff=False))}
    text |= {families.MARKER: recipe.family.name, "zlaunch_converted_from": source.root.resolve().name}
    _json(target / "config.json", text)
    vocabulary = json.loads((target / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    ids = {token["content"]: token["id"] for token in vocabulary}
    ends = [config.eos_token_id, *(ids[token] for token in recipe.family.stop_tokens if token in ids)]
    generation = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
    _json(target / "generation_config.json", generation | {"eos_token_id": ends if len(ends) > 1 else ends[0]})
    if recipe.family is families.ALIBI:
        # Without this project, users load the model with this class.
        shutil.copyfile(Path(__file__).with_name("alibi.py"), target / "alibi.py")


def write_tokenizer(source: Source, recipe: Recipe, target: Path) -> None:
    """Write a fast tokenizer with the ids of sentencepiece, the family's special tokens and its chat format."""
    path = source.root / "tokenizer.model"
    check_file(path)
    try:
        model = sentencepiece_bpe.read(path)
        made = tokenizer_for(model, source, recipe)
    except sentencepiece_bpe.NotSentencePiece as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise ConversionError(message) from None
    largest = max(made.get_vocab().values())
    if largest >= recipe.config.vocab_size:
        raise ConversionError(
            f"{path}: has ids up to {largest}, but the model has {recipe.config.vocab_size} embeddings"
        )
    made.model_max_length = recipe.config.max_position_embeddings
    made.save_pretrained(target)
    shutil.copyfile(path, target / path.name)


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")

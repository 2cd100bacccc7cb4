"""ChatGLM2/3 and Baichuan checkpoints from their original layouts to transformers' own, without remote code.

    python -m train.convert SRC DST

`pytorch_model*.bin` or safetensors, one shard at a time: the peak of memory is about one shard. A source that is torn,
incomplete or of another kind is refused before anything is written, with the name of the file at fault. DST appears
only when it is complete.
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
from train.hub.cachedir import locked, suppress_if_there
from train.original import sentencepiece_bpe
from train.original.checkpoint_files import ConversionError, Source, Tensors, check_file, load_shard, read_source
from train.original.layouts import Recipe, Shapes, recipe_for, tokenizer_for

VERSION = 2
"""Of the conversion: part of the cache's key, so that a better converter converts again."""

Say = Callable[[str], None]


def convert(src: str | os.PathLike[str], dst: str | os.PathLike[str], say: Say = print) -> Path:
    """Convert the checkpoint in directory `src` into the new directory `dst`; returns `dst`.

    Raises ConversionError (nothing is left behind) or OSError. Two processes that convert to one `dst` do it in turn,
    and the second is told that it exists.
    """
    target = Path(dst).absolute()
    source = read_source(Path(src))
    recipe = recipe_for(source)
    say(f"{source.root}: {recipe.family.title}, {len(source.shards)} shard(s) -> {recipe.config.architectures[0]}")
    with _lock(target) as held:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConversionError(f"{target} exists already: name a directory that does not exist, or remove it")
        inventory(source, recipe)
        _room_for(source, target)
        own = "" if held else f".{os.urandom(4).hex()}"
        partial = target.with_name(f".{target.name}{own}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # what a killed conversion left
        partial.mkdir(parents=True)
        try:
            write_weights(source, recipe, partial, say)
            write_tokenizer(source, recipe, partial)
            write_config(source, recipe, partial)
            _sync(partial)
            with suppress_if_there(target / "config.json"):
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    say(f"{target}: complete")
    return target


def converted(path: str | os.PathLike[str], say: Say = print, cache: str | os.PathLike[str] | None = None) -> Path:
    """`path` itself if transformers can read it, else its conversion in the cache, made there once.

    The cache (`cache`, $ZLAUNCH_CACHE, or zlaunch in the user's cache directory) is keyed by the checkpoint's place and
    by the name, size and time of each of its files. Safe to call from every rank: one converts, the others wait.
    """
    root = Path(path)
    if not needs_conversion(root):
        return root
    place = Path(cache or os.environ.get("ZLAUNCH_CACHE") or _user_cache()) / "converted"
    target = place / f"{root.resolve().name}-{_fingerprint(root)}"
    with _lock(target, "use"):
        if not target.is_dir():
            say(f"{root} is in its original layout: converting it once into {target}")
            convert(root, target, say)
        else:
            say(f"{root} is in its original layout: using its conversion {target}")
    return target


def needs_conversion(path: str | os.PathLike[str]) -> bool:
    """Whether the directory holds a checkpoint in an original layout. A path without a config.json does not."""
    try:
        config = json.loads((Path(path) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and families.needs_conversion(config)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zlaunch"


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


def _room_for(source: Source, target: Path) -> None:
    needed = sum(shard.stat().st_size for shard in source.shards)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise ConversionError(f"{target.parent}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")


def _sync(directory: Path) -> None:
    for path in [*directory.iterdir(), directory]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def inventory(source: Source, recipe: Recipe) -> None:
    """Refuse a source that lacks a tensor, has one too many, or one of a wrong shape. Reads headers only."""
    made: Shapes = {}
    for shard in source.shards:
        tensors = load_shard(shard)
        lost = source.listed.get(shard.name, frozenset()) - tensors.keys()
        if lost:
            raise ConversionError(f"{shard}: lacks {sorted(lost)[0]}, which the index says it holds; download it again")
        for name, tensor in tensors.items():
            try:
                # On the meta device the renaming gives names and shapes and touches no bytes.
                made |= {new: tuple(t.shape) for new, t in recipe.rename(name, tensor.to("meta")).items()}
            except (KeyError, RuntimeError):
                what = f"{name} {tuple(tensor.shape)}"
                raise ConversionError(f"{shard}: {what} is no tensor of {recipe.family.title}") from None
    for name, shape in recipe.shapes.items():
        if name not in made:
            raise ConversionError(f"{source.root}: no file holds the tensor for {name}; the checkpoint is incomplete")
        if made[name] != shape:
            raise ConversionError(f"{source.root}: {name} has the shape {made[name]}, and config.json says {shape}")
    for name in sorted(made.keys() - recipe.shapes.keys()):
        raise ConversionError(f"{source.root}: holds a tensor for {name}, more layers than config.json says")


def write_weights(source: Source, recipe: Recipe, target: Path, say: Say) -> None:
    """Each original shard becomes one safetensors file, written from the mapped source."""
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
        say(f"  {number}/{len(source.shards)} {shard.name} -> {name}")
        del made
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    _json(target / "model.safetensors.index.json", index)


def write_config(source: Source, recipe: Recipe, target: Path) -> None:
    """config.json with the family's marker, generation_config.json with the family's stop tokens."""
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
        # Users without this project load the model with the class that travels with it.
        shutil.copyfile(Path(__file__).with_name("alibi.py"), target / "alibi.py")


def write_tokenizer(source: Source, recipe: Recipe, target: Path) -> None:
    """A fast tokenizer with sentencepiece's ids, the family's special tokens and its chat format."""
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
        raise ConversionError(f"{path}: has ids up to {largest}, and the model {recipe.config.vocab_size} embeddings")
    made.model_max_length = recipe.config.max_position_embeddings
    made.save_pretrained(target)


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")

"""Read original checkpoints from disk: which files there are, whether they are complete, and their tensors.

Only tensors are unpickled (`weights_only`), and every error names the file at fault.
"""

from __future__ import annotations

import errno
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

Tensors = dict[str, torch.Tensor]


class ConversionError(Exception):
    """The source cannot be converted. The message names the file or setting at fault and what to do."""


@dataclass(frozen=True)
class Source:
    root: Path
    config: dict[str, Any]
    shards: tuple[Path, ...]
    listed: dict[str, frozenset[str]]
    """Tensor names by shard name, where there is an index."""

    def text(self, name: str) -> str:
        """Read a small text file of the checkpoint, without running it. Empty if there is none."""
        path = self.root / name
        return path.read_text("utf-8", errors="replace") if path.is_file() else ""


def read_source(root: Path, *, weights: bool = True) -> Source:
    """Read a checkpoint directory, with or without its weights. Raises ConversionError for a missing, empty or
    unreadable file."""
    try:
        config = json.loads((root / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        what = "no config.json in it" if root.is_dir() else "no such directory"
        raise ConversionError(f"{root}: {what}; name the directory of a downloaded checkpoint") from None
    except ValueError as error:
        raise ConversionError(f"{root / 'config.json'}: not valid JSON ({error})") from None
    if not weights:
        return Source(root, config, (), {})
    shards, listed = _shards(root)
    for shard in shards:
        check_file(shard)
    return Source(root, config, shards, listed)


def _shards(root: Path) -> tuple[tuple[Path, ...], dict[str, frozenset[str]]]:
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (root / index).is_file():
            return _indexed(root, index)
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        found = sorted(root.glob(pattern))
        if found:
            return tuple(_all_of(found)), {}
    raise ConversionError(f"{root}: no weights in it (model*.safetensors or pytorch_model*.bin)")


def _indexed(root: Path, index: str) -> tuple[tuple[Path, ...], dict[str, frozenset[str]]]:
    try:
        places: dict[str, str] = json.loads((root / index).read_text("utf-8"))["weight_map"]
        names: dict[str, set[str]] = {}
        for tensor, file in places.items():
            if Path(file).name != file:
                raise ConversionError(f"{root / index}: names a file outside the checkpoint: {file!r}")
            names.setdefault(file, set()).add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{root / index}: not a readable index ({error!r})") from None
    return tuple(root / file for file in sorted(names)), {file: frozenset(found) for file, found in names.items()}


def _all_of(found: list[Path]) -> list[Path]:
    """Complete the list: a name like `-00001-of-00007` says how many shards there should be."""
    parts = [re.search(r"^(.*)-(\d+)-of-(\d+)(\..*)$", path.name) for path in found]
    first = parts[0]
    if first is None:
        return found
    return [
        found[0].with_name(f"{first[1]}-{number:0{len(first[2])}d}-of-{first[3]}{first[4]}")
        for number in range(1, int(first[3]) + 1)
    ]


def check_file(path: Path) -> None:
    if not path.is_file():
        raise ConversionError(f"{path}: missing; the download is incomplete")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ConversionError(f"{path}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    if not start:
        raise ConversionError(f"{path}: empty; the download is incomplete")


def load_shard(path: Path) -> Tensors:
    """Map the tensors of a file without reading them. Raises ConversionError for a cut file and code in a pickle."""
    check_file(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        except SafetensorError as error:
            raise ConversionError(f"{path}: damaged or incomplete ({error}); download it again") from None
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            found = torch.load(path, map_location="cpu", weights_only=True)  # torch before 1.6 wrote no zip files
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise ConversionError(f"{path}: refused: it is damaged or holds more than tensors ({first})") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # the zip reader of torch raises this for a cut file
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ConversionError(f"{path}: damaged or incomplete ({first}); download it again") from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ConversionError(f"{path}: does not hold tensors by name")
    return found

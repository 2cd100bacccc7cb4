"""The data files of a directory or of a data set of the hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from train.errors import DataError
from train.hub import hub
from train.hub.cachedir import cache_directory

SUFFIXES = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""Suffix -> kind of file."""
_SPLIT = re.compile(r"(?:^|[-_.])(train|training|test|testing|validation|valid|val|dev|eval)(?:[-_.]|$)")
_METADATA = frozenset({"state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"})


def files_of_directory(place: Path) -> list[str]:
    """Files of records in a directory, a folder of `save_to_disk`, or a snapshot of a hub (`data/*.parquet`).

    Raises DataError for a directory without records or with more than one split.
    """
    if (place / "dataset_dict.json").is_file():
        splits = json.loads((place / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        raise DataError(f"{place} holds the splits {', '.join(splits)}", f"name one of them: {place / splits[0]}")
    if (place / "state.json").is_file():
        listed = json.loads((place / "state.json").read_text(encoding="utf-8")).get("_data_files", [])
        return [str(place / entry["filename"]) for entry in listed]
    found = _records_in(place)
    if not found:
        inner = [folder for folder in sorted(place.iterdir()) if folder.is_dir() and _records_in(folder)]
        if len(inner) > 1:
            names = ", ".join(folder.name for folder in inner)
            raise DataError(f"{place} holds records in {names}", f"name one of them: {inner[0]}")
        found = _records_in(inner[0]) if inner else []
    if not found:
        raise DataError(f"{place}: no file of records in this directory ({', '.join(sorted(SUFFIXES))})")
    splits = {match[1] if (match := _SPLIT.search(file.name.lower())) else "train" for file in found}
    if len(splits - {"training"}) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(
            f"{place} holds files of several splits: {names}", "name the files to train on, not the directory"
        )
    return [str(file) for file in found]


def _records_in(place: Path) -> list[Path]:
    return sorted(
        file
        for file in place.iterdir()
        if file.suffix.lower() in SUFFIXES and file.is_file() and file.name not in _METADATA
    )


def hub_files(path: str) -> list[str]:
    """The Arrow files of `hub:owner/name[:config][:split]`, in the cache of `datasets`, asked for once per node.

    A directory works as a data set too. A split may be a part, as in train[:5%], which is written to our own cache.
    """
    name, *rest = re.split(r":(?![^\[]*\])", path.removeprefix("hub:"))
    config, split = rest if len(rest) == 2 else (None, rest[0] if rest else "train")
    if len(rest) > 2 or not name:
        raise DataError(f"{path}: expected hub:owner/name, hub:owner/name:split or hub:owner/name:config:split")
    return hub.once(f"data-{name}:{config or ''}:{split}", lambda: list(_fetched(path, name, config, split)))


def _fetched(path: str, name: str, config: str | None, split: str) -> Iterable[str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"{path} needs the package `datasets`", "pip install datasets") from None
    try:
        data = load_dataset(name, config, split=split)
    except Exception as error:  # its errors have no common base class
        first = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: cannot load the data set: {first}",
            "check the spelling and the split; a private one needs HF_TOKEN in `secrets`; offline it must be cached",
        ) from None
    if "[" in split or "+" in split:  # its cache files hold the whole splits
        key = hashlib.blake2b(f"{path} {data._fingerprint}".encode(), digest_size=12).hexdigest()
        file = cache_directory() / "datasets" / f"{key}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(str(file))
        return [str(file)]
    return [str(file["filename"]) for file in data.cache_files]

"""The data files of a directory or of a data set of the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train.errors import DataError
from train.hub import hub
from train.hub.cache_places import fetching_counted
from train.hub.cachedir import cache_directory

SUFFIXES = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""Suffix -> kind of file."""
_SPLIT = re.compile(r"(?:^|[-_.])(train|training|test|testing|validation|valid|val|dev|eval)(?:[-_.]|$)")
_ALIASES = {"training": "train", "testing": "test", "valid": "validation", "val": "validation", "dev": "validation"}
_METADATA = frozenset({"state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"})


def files_of_directory(place: Path, split: str | None = None) -> list[str]:
    """Files of records in a directory, a folder of `save_to_disk`, or a snapshot of a hub (`data/*.parquet`).

    Raises DataError for a directory without records, without this split, or with several and none named.
    """
    splits = _splits(place)
    if not splits:
        raise DataError(
            f"{place}: no file of records in this directory ({', '.join(sorted(SUFFIXES))})", code="ZL-DATA-04"
        )
    names = ", ".join(splits)
    if split is None and len(splits) > 1:
        likely = "train" if "train" in splits else next(iter(splits))
        raise DataError(
            f"{place} holds several splits: {names}", f"name one of them: {place}:{likely}", code="ZL-DATA-04"
        )
    if split is None:
        split = next(iter(splits))
    name = split if split in splits else _ALIASES.get(split, split)  # a folder may have the name of an alias
    if name not in splits:
        raise DataError(f"{place} has no split {split!r}", f"it holds {names}", code="ZL-DATA-04")
    return [file for found in splits[name] for file in (files_of_directory(found) if found.is_dir() else [str(found)])]


def _splits(place: Path) -> dict[str, list[Path]]:
    """{split: its files or folder}; folders beside each other count as splits."""
    if (place / "dataset_dict.json").is_file():
        return {split: [place / split] for split in _read(place / "dataset_dict.json")["splits"]}
    if (place / "state.json").is_file():
        state = _read(place / "state.json")
        return {state.get("_split") or "train": [place / entry["filename"] for entry in state.get("_data_files", [])]}
    own = _records_in(place)
    inner = [folder for folder in sorted(place.iterdir()) if _is_data_folder(folder)]
    if own and inner:
        raise DataError(
            f"{place} holds records of its own, such as {own[0].name}, and in {', '.join(one.name for one in inner)}",
            "name the files or the folder to train on",
            code="ZL-DATA-04",
        )
    if len(inner) == 1:
        return _splits(inner[0])
    found: dict[str, list[Path]] = {folder.name: [folder] for folder in inner}
    for file in own:
        match = _SPLIT.search(file.name.lower())
        found.setdefault(_ALIASES.get(match[1], match[1]) if match else "train", []).append(file)
    return found


def _is_data_folder(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".") and bool(_records_in(folder))


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


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
        raise DataError(
            f"{path}: expected hub:owner/name, hub:owner/name:split or hub:owner/name:config:split", code="ZL-DATA-07"
        )
    return hub.once(f"data-{name}:{config or ''}:{split}", lambda: list(_fetched(path, name, config, split)))


def _fetched(path: str, name: str, config: str | None, split: str) -> Iterable[str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"{path} needs the package `datasets`", "pip install datasets", code="ZL-MACHINE-02") from None
    try:
        with fetching_counted(name):
            data = load_dataset(name, config, split=split)
    except Exception as error:  # its errors have no common base class
        first = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: cannot load the data set: {first}",
            "check the spelling and the split; a private one needs HF_TOKEN in `secrets`; offline it must be cached",
            code="ZL-DATA-07",
        ) from None
    if "[" in split or "+" in split:  # its cache files hold the whole splits
        import hashlib

        key = hashlib.blake2b(f"{path} {data._fingerprint}".encode(), digest_size=12).hexdigest()
        file = cache_directory() / "datasets" / f"{key}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(str(file))
        return [str(file)]
    return [str(file["filename"]) for file in data.cache_files]

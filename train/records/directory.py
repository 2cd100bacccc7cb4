"""The data files of a directory or of a data set of the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train.errors import DataError
from train.hub import data_sets, hub
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
    ".txt": "text",
    ".md": "text",
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
    for file in own or ([] if inner else _texts_in(place)):
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
        if SUFFIXES.get(file.suffix.lower(), "text") != "text" and file.is_file() and file.name not in _METADATA
    )


def _texts_in(place: Path) -> list[Path]:
    """Documents in a directory without other records: not what describes a data set."""
    about = re.compile(r"(?i)(readme|license|licence|changelog|citation|notice)\b")
    found = (file for file in place.iterdir() if SUFFIXES.get(file.suffix.lower()) == "text" and file.is_file())
    return sorted(file for file in found if not about.match(file.name))


def hub_files(path: str) -> list[str]:
    """The files of a data set on a hub, in the hub's own cache, asked for once per node.

    `hub:owner/name[:config][:split]`: Arrow files of `datasets`. A directory works as a data set too. A split may be a
    part, as in train[:5%], which is written to our own cache. `ms:owner/name[:folder][:split]`: the files of ModelScope
    as they are. `hub:owner/name/FILE`, `ms:owner/name/FILE`: one file.
    """
    if path.startswith("ms:"):
        return _of_modelscope(path)
    if single := _FILE.fullmatch(path):
        return hub.once(f"data-{path}", lambda: [data_sets.file_of_huggingface(path, single[1], single[2])])
    name, *rest = re.split(r":(?![^\[]*\])", path.removeprefix("hub:"))
    config, split = rest if len(rest) == 2 else (None, rest[0] if rest else "train")
    if len(rest) > 2 or not name:
        raise DataError(
            f"{path}: expected hub:owner/name, hub:owner/name:split or hub:owner/name:config:split", code="ZL-DATA-07"
        )
    return hub.once(f"data-{name}:{config or ''}:{split}", lambda: list(_fetched(path, name, config, split)))


_FILE = re.compile(rf"(?:hub|ms):([\w.-]+/[\w.-]+)/([^:]+(?:{'|'.join(map(re.escape, SUFFIXES))}))", re.IGNORECASE)


def _of_modelscope(path: str) -> list[str]:
    single = _FILE.fullmatch(path)
    name, *rest = (single[1] if single else path.removeprefix("ms:")).split(":")
    if len(rest) > 2 or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise DataError(
            f"{path}: expected ms:owner/name, ms:owner/name:split, ms:owner/name:folder:split or a file",
            code="ZL-DATA-07",
        )
    wanted = [single[2]] if single else [f"*{suffix}" for suffix in SUFFIXES]
    (held,) = hub.once(
        f"ms-data-{name}:{single[2] if single else ''}", lambda: [data_sets.from_modelscope(path, name, wanted)]
    )
    place = Path(held)
    if single:
        return [str(place / single[2])]
    if len(rest) == 2:
        place, rest = place / rest[0], rest[1:]
        if not place.is_dir():
            raise DataError(f"{path}: the data set has no folder {place.name}", code="ZL-DATA-07")
    split = rest[0] if rest else ("train" if "train" in _splits(place) else None)
    return files_of_directory(place, split)


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

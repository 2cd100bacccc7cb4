"""Paths of a job: made absolute where the job file was read, and the data sources that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.config import Source

_PATH_KEYS = (("data", "train"), ("data", "eval"))


def make_absolute(tree: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """`tree` with the data paths, and a model path that exists there, made absolute against `base`."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for section, key in _PATH_KEYS:
        part = result.get(section)
        if isinstance(part, dict) and key in part:
            part[key] = _absolute_sources(part[key], base)
    model = result.get("model")
    if isinstance(model, dict) and isinstance(model.get("path"), str):
        path = model["path"]
        if path.startswith((".", "~")) or (path and (base / path).exists()):
            model["path"] = str((base / Path(path).expanduser()).resolve())
    for section, key in (("ssh", "hostfile"), ("ssh", "ssh_config"), ("slurm", "template"), ("lora", "adapter")):
        part = result.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = str(base / Path(part[key]).expanduser())
    local = result.get("local")
    if isinstance(local, dict) and isinstance(local.get("python"), str) and "/" in local["python"]:  # else on the PATH
        local["python"] = str(base / Path(local["python"]).expanduser())
    return result


def _absolute_sources(value: Any, base: Path) -> Any:
    if isinstance(value, str) and value and "://" not in value and not value.startswith("hub:"):
        return str(base / Path(value).expanduser())
    if isinstance(value, (list, tuple)):
        return [_absolute_sources(item, base) for item in value]
    if isinstance(value, dict) and "path" in value:
        return {**value, "path": _absolute_sources(value["path"], base)}
    return value


def source_paths(sources: Any) -> list[str]:
    """The paths that data.train or data.eval names."""
    items = [sources] if isinstance(sources, (str, Source)) else sources or ()
    return [item if isinstance(item, str) else item.path for item in items]

"""Paths of a job, made absolute when the job is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launcher.errors import SpecError
from launcher.job.deepspeed import ds_reading
from train.config import HUBS, held_out

FILES = (("ssh", "hostfile"), ("ssh", "ssh_config"), ("slurm", "template"), ("lora", "adapter"))
"""(section, key) of paths that are always files or directories of this machine."""


def with_absolute_paths(tree: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """`tree` with its paths made absolute against `base`.

    A model path stays as it is where nothing exists at that place: it may be a hub id. So does an interpreter without a
    slash, which is looked up on the PATH.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}

    def replace(section: str, key: str, absolute: Callable[[Any], Any]) -> None:
        part = result.get(section)
        if isinstance(part, dict) and key in part:
            part[key] = absolute(part[key])

    for key in ("train", "eval"):
        replace("data", key, lambda value: _listed_sources(value, base))
    replace("model", "path", lambda value: _absolute_model(value, base))
    replace("data", "chat_template", lambda value: _text_of_template(value, base))
    replace("train", "ds_config", lambda value: ds_reading.load(value, base))
    for section, key in FILES:
        replace(section, key, lambda value: _absolute(value, base))
    if "node_template" in result:
        result["node_template"] = _absolute(result["node_template"], base)
    replace("local", "python", lambda value: _absolute(value, base) if "/" in str(value) else value)
    return result


def _absolute(value: Any, base: Path) -> Any:
    """A value of another type stays as it is; the schema refuses it later. Raises SpecError."""
    if not isinstance(value, str):
        return value
    try:
        return str(base / Path(value).expanduser())
    except RuntimeError as error:
        raise SpecError(f"{value}: this machine has no such user") from error


def _listed_sources(value: Any, base: Path) -> Any:
    """All of data.train or data.eval; one source with its limit is a list of one."""
    found = _absolute_sources(value, base)
    return [found] if isinstance(value, str) and isinstance(found, dict) else found


def _text_of_template(value: Any, base: Path) -> Any:
    """The text of the file that the value names; a template, or a name that no file has, as it is.

    The text travels with the job, and a later start finds what the first one found.
    """
    if not isinstance(value, str) or "{{" in value or "{%" in value or not value.strip():
        return value
    file = Path(_absolute(value, base))
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else value
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"data.chat_template: cannot read {file}: {error}", code="ZL-FILE-02") from None


def _absolute_model(value: Any, base: Path) -> Any:
    if not isinstance(value, str) or not value:
        return value
    exists = os.path.exists(base / value)  # noqa: PTH110 - Path.exists raises for names that are too long
    if exists or value.startswith((".", "~")):
        return os.path.realpath(_absolute(value, base))
    return value


def _absolute_source(value: str, base: Path) -> Any:
    """One source of records. `FILE#1000` becomes its first 1000 records, unless that is the name of a file."""
    if not value or held_out(value):
        return value
    limited = re.fullmatch(r"(.+)#([1-9]\d*)", value)
    if limited and not os.path.exists(base / Path(value).expanduser()):  # noqa: PTH110 - as for a model
        return {"path": _absolute_source(limited[1], base), "first": int(limited[2])}
    return value if "://" in value or value.startswith(HUBS) else _absolute(value, base)


def _absolute_sources(value: Any, base: Path) -> Any:
    if isinstance(value, str):
        return _absolute_source(value, base)
    if isinstance(value, (list, tuple)):
        return [_absolute_sources(item, base) for item in value]
    if isinstance(value, dict) and "path" in value:
        return {**value, "path": _absolute_sources(value["path"], base)}
    return value

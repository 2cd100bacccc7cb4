"""Batch arithmetic of a run that continues with fewer ranks."""

from __future__ import annotations

import os

from ..files import read_json, write_atomic

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Dict, Tuple

    from ..files import File, Json


class BatchError(Exception):
    """The remaining ranks cannot keep the global batch."""


def resize_batch(global_batch: int, micro: int, world_size: int) -> Tuple[int, int]:
    """Return (micro batch at most `micro`, accumulation) that keep the global batch. Raises BatchError."""
    for size in range(micro, 0, -1):
        if global_batch % (size * world_size) == 0:
            return size, global_batch // (size * world_size)
    raise BatchError("global_batch_size %d does not divide by %d ranks" % (global_batch, world_size))


def resized_files(files: Dict[str, Json], world_size: int) -> Dict[str, Json]:
    """Return train.json and ds_config.json for another number of ranks and the same global batch. Raises BatchError."""
    changed: Dict[str, Json] = {}
    config = files.get("train.json")
    if config is None:
        return changed
    train = config["train"]
    micro, accumulation = resize_batch(train["global_batch_size"], train["micro_batch_size"], world_size)
    batch = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation}
    changed["train.json"] = {**config, "world_size": world_size, "train": {**train, **batch}}
    if "ds_config.json" in files:
        changed["ds_config.json"] = {
            **files["ds_config.json"],
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
        }
    return changed


def resize_run(root: File, world_size: int, write: bool) -> None:
    """Check (and write) the batch arithmetic for `world_size` ranks. Raises BatchError, OSError."""
    import json

    read = {name: read_json(os.path.join(root, name)) for name in ("train.json", "ds_config.json")}
    files = resized_files({name: value for name, value in read.items() if value is not None}, world_size)
    for name, value in files.items() if write else ():
        write_atomic(os.path.join(root, name), json.dumps(value, indent=2, ensure_ascii=False) + "\n")

"""Models that the user has at hand: those of earlier runs and those in the hub's cache of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable

from launcher.errors import ZlaunchError
from launcher.job.load import read_tree
from launcher.machine import hub_places
from launcher.rundir.directory import RunDir

MOST_RUNS = 30
"""Earlier runs that are looked at, the newest first."""
MOST = 40
"""Suggestions for a field."""


def suggestions(runs: Iterable[RunDir]) -> dict[str, list[str]]:
    """{key: texts for its field}, the latest first."""
    found: dict[str, list[str]] = {"model.path": []}
    for run in list(runs)[: -MOST_RUNS - 1 : -1]:
        try:
            model = read_tree(run.job_yaml).get("model")
        except ZlaunchError:  # damaged, or only rendered
            continue
        path = model.get("path") if isinstance(model, dict) else None
        if isinstance(path, str) and path:
            found["model.path"].append(path)
    found["model.path"] += cached_models()
    return {key: list(dict.fromkeys(texts))[:MOST] for key, texts in found.items()}


def cached_models() -> list[str]:
    """Hub ids whose config.json is in the cache."""
    try:
        held = sorted(hub_places.hf_hub(os.environ).glob("models--*/snapshots/*/config.json"))
    except OSError:
        return []
    return [file.parents[2].name.removeprefix("models--").replace("--", "/") for file in held]

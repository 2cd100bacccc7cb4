"""What `zlaunch doctor net` has measured between hosts, kept for later plans in the user's cache."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

MOST = 50
"""Measurements that are kept."""


def file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zlaunch" / "network.json"


def remember(hosts: Collection[str], rate: float) -> None:
    """Keep the bytes per second between these hosts. A cache that cannot be written is no failure."""
    kept = [entry for entry in _entries() if set(entry["hosts"]) != set(hosts)][-MOST + 1 :]
    kept.append({"hosts": sorted(hosts), "bytes_per_second": rate, "time": time.time()})
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
        new = file().with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(kept), encoding="utf-8")
        new.replace(file())
    except OSError:
        pass


def of_partition(partition: str | None) -> tuple[str, str]:
    """What stands for the nodes of a Slurm partition, whose names no plan knows. None: of any partition, because a job
    that names none gets the site's default."""
    return ("slurm", f"partition {partition}" if partition else "slurm")


def known(hosts: Collection[str]) -> float | None:
    """The newest measurement that had all of these hosts; None: there is none."""
    if len(hosts) < 2:
        return None
    found = [entry for entry in _entries() if set(hosts) <= set(entry["hosts"])]
    return float(found[-1]["bytes_per_second"]) if found else None


def _entries() -> list[dict[str, Any]]:
    try:
        read = json.loads(file().read_text(encoding="utf-8"))
        return [entry for entry in read if entry["hosts"] and float(entry["bytes_per_second"]) > 0]
    except (OSError, ValueError, TypeError, KeyError):
        return []

"""What a cluster's partitions allow, as Slurm's tools print it. Pure: no process is started here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Partition:
    name: str
    is_default: bool
    is_up: bool
    max_seconds: float | None
    """None: no limit."""
    default_seconds: float | None
    max_nodes: int
    """Nodes that one job may have: the partition's own limit, or all of its nodes."""
    most_gpus: int | None = None
    """GPUs of its best node; None: sinfo did not say."""


def parse_partitions(text: str, gpus: Mapping[str, int] | None = None) -> dict[str, Partition]:
    """Partitions of `scontrol show partition --oneliner`, by name; `gpus` from parse_gpus."""
    found = {}
    for line in text.splitlines():
        fields = dict(item.partition("=")[::2] for item in line.split() if "=" in item)
        name = fields.get("PartitionName")
        if name is None:
            continue
        total = int(fields.get("TotalNodes") or 0)
        limit = fields.get("MaxNodes", "UNLIMITED")
        found[name] = Partition(
            name,
            fields.get("Default") == "YES",
            fields.get("State") == "UP",
            seconds_of(fields.get("MaxTime", "")),
            seconds_of(fields.get("DefaultTime", "")),
            min(total, int(limit)) if limit.isdigit() else total,
            None if gpus is None else gpus.get(name, 0),
        )
    return found


def parse_gpus(text: str) -> dict[str, int]:
    """Most GPUs of one node, by partition, of `sinfo --noheader --format=%R|%G`."""
    most: dict[str, int] = {}
    for line in text.splitlines():
        name, _, gres = line.strip().partition("|")
        most[name] = max(most.get(name, 0), gpus_of(gres))
    return most


def gpus_of(gres: str) -> int:
    """`gpu:h200:8(S:0-1),gpu:a30:2,nvme:1` -> 10."""
    plain = re.sub(r"\([^)]*\)", "", gres)
    counts = [item.split(":")[1:] for item in plain.split(",") if item.split(":")[0] == "gpu"]
    return sum(int(rest[-1]) if rest and rest[-1].isdigit() else 1 for rest in counts)


def seconds_of(text: str) -> float | None:
    """Slurm's time limits: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].

    None for UNLIMITED, INFINITE, NONE and what is no time.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        return None
    days, *parts = match.groups()
    first, second, third = (int(part) if part is not None else None for part in parts)
    assert first is not None
    if days is not None:
        return int(days) * 86400.0 + first * 3600 + (second or 0) * 60 + (third or 0)
    if third is not None:
        return first * 3600.0 + (second or 0) * 60 + third
    return first * 60.0 + (second or 0)

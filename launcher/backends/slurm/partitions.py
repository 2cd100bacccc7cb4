"""What a cluster's partitions allow, as Slurm's tools print it. Pure: no process is started here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import TargetError
from launcher.job.spec import SlurmSpec
from launcher.plan.batch_job import format_seconds, seconds_of


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


def check_limits(slurm: SlurmSpec, gpus_per_node: int, partitions: Mapping[str, Partition]) -> None:
    """Refuse what this cluster's partitions can never run. Raises TargetError naming what they can.

    `gpus_per_node` is 0 for a run on CPUs. Without any partition known nothing is refused.
    """
    wanted = slurm.partition.split(",") if slurm.partition else [p.name for p in partitions.values() if p.is_default]
    chosen = [partitions[name] for name in wanted if name in partitions]
    if slurm.partition and partitions:
        for name in wanted:
            if name not in partitions:
                near = difflib.get_close_matches(name, partitions, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise TargetError(
                    f"slurm.partition: this cluster has no partition {name!r}",
                    hint=f"{hint}partitions: {', '.join(sorted(partitions))}",
                )
    problems = [problem for partition in chosen if (problem := _problem(slurm, gpus_per_node, partition))]
    if problems and len(problems) == len(chosen):  # a job may name several partitions: one that can run it is enough
        message, hint = problems[0]
        raise TargetError(message, hint=hint)


def _problem(slurm: SlurmSpec, gpus: int, partition: Partition) -> tuple[str, str] | None:
    """(what is wrong, what to do) for one partition; None if it can run the job."""
    name = f"partition {partition.name!r}"
    if not partition.is_up:
        return f"{name} is down", "ask for another one with --partition; `sinfo` shows their states"
    if slurm.nodes > partition.max_nodes:
        return (
            f"slurm.nodes: {slurm.nodes} nodes asked for, {name} gives a job at most {partition.max_nodes}",
            f"say --nodes {partition.max_nodes}, or another partition",
        )
    if partition.most_gpus is not None and gpus > partition.most_gpus:
        most = f"has at most {partition.most_gpus}" if partition.most_gpus else "has none"
        hint = f"say --gpus-per-node {partition.most_gpus}" if partition.most_gpus else "say --device cpu"
        return f"slurm.gpus_per_node: {gpus} asked for, a node of {name} {most}", f"{hint}, or another partition"
    limit = seconds_of(slurm.time) if slurm.time else None
    if limit is not None and partition.max_seconds is not None and limit > partition.max_seconds:
        most = format_seconds(partition.max_seconds)
        return (
            f"slurm.time: {slurm.time} asked for, {name} allows {most}",
            f"say --time {most}: a longer training saves a checkpoint, queues itself again and goes on",
        )
    default = partition.default_seconds
    if slurm.time is None and default is not None and default <= slurm.signal_before:
        return (
            f"{name} gives a job {format_seconds(default)} unless it asks for more, and "
            f"slurm.signal_before is {slurm.signal_before} s",
            "say --time",
        )
    return None

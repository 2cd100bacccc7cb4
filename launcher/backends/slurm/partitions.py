"""Parse what a cluster's partitions allow, and check a job against it. Pure."""

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
    """Most nodes per job: the partition's limit, or all of its nodes."""
    max_gpus: int | None = None
    """GPUs of the node that has most; None: sinfo did not report them."""


def parse_partitions(text: str, gpus: Mapping[str, int] | None = None) -> dict[str, Partition]:
    """Parse the output of `scontrol show partition --oneliner`: {name: partition}; `gpus` is from parse_gpus."""
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
    """Parse the output of `sinfo --noheader --format=%R|%G`: {partition: most GPUs of one node}."""
    most: dict[str, int] = {}
    for line in text.splitlines():
        name, _, gres = line.strip().partition("|")
        most[name] = max(most.get(name, 0), gpus_of(gres))
    return most


def gpus_of(gres: str) -> int:
    """Count the GPUs of a GRES list: `gpu:h200:8(S:0-1),gpu:a30:2,nvme:1` has 10."""
    plain = re.sub(r"\([^)]*\)", "", gres)
    counts = [item.split(":")[1:] for item in plain.split(",") if item.split(":")[0] == "gpu"]
    return sum(int(rest[-1]) if rest and rest[-1].isdigit() else 1 for rest in counts)


def check_limits(slurm: SlurmSpec, gpus_per_node: int, partitions: Mapping[str, Partition]) -> None:
    """Refuse what this cluster's partitions can never run. Raises TargetError that names what they can run.

    `gpus_per_node` is 0 for a run on CPUs. Nothing is refused if no partition is known.
    """
    names = slurm.partition.split(",") if slurm.partition else [p.name for p in partitions.values() if p.is_default]
    chosen = [partitions[name] for name in names if name in partitions]
    if slurm.partition and partitions:
        for name in names:
            if name not in partitions:
                near = difflib.get_close_matches(name, partitions, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise TargetError(
                    f"slurm.partition: this cluster has no partition {name!r}",
                    hint=f"{hint}partitions: {', '.join(sorted(partitions))}",
                )
    problems = [problem for partition in chosen if (problem := _problem(slurm, gpus_per_node, partition))]
    if problems and len(problems) == len(chosen):  # one of several partitions is enough
        message, hint = problems[0]
        raise TargetError(message, hint=hint)


def _problem(slurm: SlurmSpec, gpus: int, partition: Partition) -> tuple[str, str] | None:
    """Return (what is wrong, what to do) for one partition; None: it can run the job."""
    name = f"partition {partition.name!r}"
    if not partition.is_up:
        return f"{name} is down", "ask for another one with --partition; `sinfo` shows their states"
    if slurm.nodes > partition.max_nodes:
        return (
            f"slurm.nodes: {slurm.nodes} nodes requested, {name} allows at most {partition.max_nodes} per job",
            f"use --nodes {partition.max_nodes}, or another partition",
        )
    if partition.max_gpus is not None and gpus > partition.max_gpus:
        most = f"has at most {partition.max_gpus}" if partition.max_gpus else "has none"
        hint = f"use --gpus-per-node {partition.max_gpus}" if partition.max_gpus else "use --device cpu"
        return f"slurm.gpus_per_node: {gpus} requested, a node of {name} {most}", f"{hint}, or another partition"
    limit = seconds_of(slurm.time) if slurm.time else None
    if limit is not None and partition.max_seconds is not None and limit > partition.max_seconds:
        most = format_seconds(partition.max_seconds)
        return (
            f"slurm.time: {slurm.time} requested, {name} allows {most}",
            f"use --time {most}: a longer training saves a checkpoint, requeues itself and continues",
        )
    default = partition.default_seconds
    if slurm.time is None and default is not None and default <= slurm.signal_before:
        return (
            f"{name} gives a job {format_seconds(default)} by default, and "
            f"slurm.signal_before is {slurm.signal_before} s",
            "use --time",
        )
    return None

"""Parse what a cluster's partitions allow, and check a job against it. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

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
    cpus_per_gpu: int | None = None
    """What the site gives a job per GPU (DefCpuPerGPU); None: it does not say."""
    max_cpus_per_node: int | None = None

    def or_on(self, other: Partition) -> Partition:
        """Return what a job may have here or on another cluster's partition of the same name, whichever is more."""

        def more(one: Any, two: Any) -> Any:
            return None if one is None or two is None else max(one, two)

        own: dict[str, Any] = asdict(self)
        others: dict[str, Any] = asdict(other)
        return Partition(**own | {key: more(own[key], others[key]) for key in own if key != "name"})


def parse_partitions(text: str, gpus: Mapping[str, int] | None = None) -> dict[str, Partition]:
    """Parse the output of `scontrol show partition --oneliner`: {name: partition}; `gpus` per best node."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = dict(item.partition("=")[::2] for item in line.split() if "=" in item)
        name = fields.get("PartitionName")
        if name is None:
            continue
        total = _count(fields.get("TotalNodes", "")) or 0
        limit, cpus = fields.get("MaxNodes", "UNLIMITED"), fields.get("MaxCPUsPerNode", "UNLIMITED")
        per_gpu = re.search(r"DefCpuPerGPU=([0-9]{1,9})\b", line)
        new = Partition(
            name,
            fields.get("Default") == "YES",
            fields.get("State") == "UP",
            seconds_of(fields.get("MaxTime", "")),
            seconds_of(fields.get("DefaultTime", "")),
            total if (most := _count(limit)) is None else min(total, most),
            None if gpus is None else gpus.get(name, 0),
            int(per_gpu[1]) if per_gpu else None,
            _count(cpus),
        )
        found[name] = found[name].or_on(new) if name in found else new
    return found


def gpus_of(gres: str) -> dict[str, int]:
    """Count the GPUs of a GRES list by type: `gpu:h200:8(S:0-1),gpu:2,nvme:1` is {"h200": 8, "": 2}."""
    found: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = item.strip().split(":")
        if name == "gpu":
            count = _count(rest.pop()) if rest and rest[-1].isdigit() else 1
            kind = ":".join(rest)
            found[kind] = found.get(kind, 0) + (count or 0)
    return found


def chosen(slurm: SlurmSpec, known: Mapping[str, Partition]) -> list[str]:
    """Return the names of the partitions that the job may run in."""
    if slurm.partition:
        return [name.strip() for name in slurm.partition.split(",")]
    return [partition.name for partition in known.values() if partition.is_default]


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def check_limits(slurm: SlurmSpec, gpus_per_node: int, partitions: Mapping[str, Partition]) -> None:
    """Refuse what this cluster's partitions can never run. Raises TargetError that names what they can run.

    `gpus_per_node` is 0 for a run on CPUs. Nothing is refused if no partition is known.
    """
    names = chosen(slurm, partitions)
    possible = [partitions[name] for name in names if name in partitions]
    if slurm.partition and partitions:
        for name in names:
            if name not in partitions:
                near = difflib.get_close_matches(name, partitions, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise TargetError(
                    f"slurm.partition: this cluster has no partition {name!r}",
                    hint=f"{hint}partitions: {', '.join(sorted(partitions))}",
                    code="ZL-SLURM-03",
                )
    problems = [problem for partition in possible if (problem := _problem(slurm, gpus_per_node, partition))]
    if problems and len(problems) == len(possible):  # one of several partitions is enough
        message, hint = problems[0]
        raise TargetError(message, hint=hint, code="ZL-SLURM-03")


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

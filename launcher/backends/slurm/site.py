"""What Slurm tells of a cluster's nodes, and what follows for a job: its GPU, and the cores that go with its GPUs.

What Slurm does not tell stays unknown, with the reason. Nothing is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from launcher.backends.slurm import partitions
from launcher.backends.slurm.partitions import Partition
from launcher.backends.slurm.shell import Shell
from launcher.errors import HostfileError, TargetError
from launcher.job.spec import SlurmSpec
from launcher.plan import batch_job, gpus
from launcher.plan.gpus import GpuModel
from launcher.plan.types import Reason
from launcher.remote.hostfile import expand_ranges
from train.config import Device

ASK_SECONDS = 15.0
"""For each question before a run. A controller that is down makes Slurm's commands wait for about ten."""
SINFO_FIELDS = "%R|%D|%c|%m|%G|%N|%f"
"""Partition, nodes, CPUs and MB of memory per node, GRES, names, features."""


@dataclass(frozen=True)
class NodeKind:
    """Nodes of one partition that are configured alike."""

    partition: str
    count: int
    cpus: int
    memory_mb: int
    gpus: Mapping[str, int]
    """{type of GRES: number per node}; the type is empty where the site gives none."""
    names: str
    """As Slurm writes them: `node[1-4,7]`."""
    features: frozenset[str] = frozenset()

    @property
    def gres(self) -> str:
        return ",".join(f"gpu:{kind}:{count}" if kind else f"gpu:{count}" for kind, count in self.gpus.items())


@dataclass(frozen=True)
class Site:
    partitions: Mapping[str, Partition]
    kinds: tuple[NodeKind, ...] = ()
    unknown: str = ""
    """Why Slurm did not tell about nodes; empty: it did."""
    gives_no_gpus: bool = False
    """Its SelectType is select/linear, which takes a job that requests GPUs and gives it none."""


NO_GPUS = (
    "SelectType of this cluster is select/linear: Slurm 22.05 then takes a job that requests GPUs, gives it none, and "
    "refuses its steps (Invalid generic resource). GPUs need select/cons_tres; a short run shows whether it gives any"
)
NOT_ASKED = Site({}, (), "Slurm was not asked")


@dataclass(frozen=True)
class Finding:
    """What the site says that the job leaves open."""

    gpu: GpuModel | None = None
    cpus_per_task: int | None = None
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()
    unknown: str = ""
    """Why the GPU is not known; empty: it is."""


def ask(shell: Shell) -> Site:
    """Ask Slurm for partitions and nodes. Raises TargetError if it does not answer."""
    shown = shell.run(["scontrol", "show", "partition", "--oneliner"], timeout=ASK_SECONDS)
    if shown.code != 0:
        raise TargetError(
            f"Slurm does not answer: {' '.join(shown.last_lines)}",
            hint="nothing was queued; the run directory is kept: `zlaunch resume RUN` submits it later",
            code="ZL-SLURM-02",
        )
    config = shell.run(["scontrol", "show", "config"], timeout=ASK_SECONDS).stdout
    linear = re.search(r"^SelectType\s*=\s*select/linear\s*$", config, re.MULTILINE) is not None
    listed = shell.run(["sinfo", "--all", "--exact", "--noheader", f"--format={SINFO_FIELDS}"], timeout=ASK_SECONDS)
    if listed.code != 0:
        return Site(partitions.parse_partitions(shown.stdout), (), f"sinfo: {' '.join(listed.last_lines)}", linear)
    kinds = parse_nodes(listed.stdout)
    known = partitions.parse_partitions(shown.stdout, most_gpus(kinds))
    return Site(known, with_usable_cpus(shell, kinds), gives_no_gpus=linear)


def parse_nodes(text: str) -> tuple[NodeKind, ...]:
    """Parse the output of `sinfo --exact --noheader --format=SINFO_FIELDS`."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", 6)]
        if len(fields) == 7 and fields[1].isdigit():
            partition, count, cpus, memory, gres, names, features = fields
            known = frozenset() if features == "(null)" else frozenset(features.split(","))
            found.append(
                NodeKind(partition, int(count), _number(cpus), _number(memory), partitions.gpus_of(gres), names, known)
            )
    return tuple(found)


def _number(text: str) -> int:
    """4 of `4` and of `4+`."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def most_gpus(kinds: Iterable[NodeKind]) -> dict[str, int]:
    """{partition: GPUs of the node that has most}."""
    most: dict[str, int] = {}
    for kind in kinds:
        most[kind.partition] = max(most.get(kind.partition, 0), sum(kind.gpus.values()))
    return most


def with_usable_cpus(shell: Shell, kinds: tuple[NodeKind, ...]) -> tuple[NodeKind, ...]:
    """The nodes with GPUs without the cores that the site keeps for itself, which sinfo counts too."""
    first = {kind.names: names[0] for kind in kinds if kind.gpus and (names := _split(kind.names))}
    if not first:
        return kinds
    shown = shell.run(["scontrol", "show", "node", "--oneliner", ",".join(sorted({*first.values()}))])
    usable = {}
    for line in shown.stdout.splitlines() if shown.code == 0 else ():
        fields = dict(re.findall(r"(\w+)=(\S+)", line))
        kept = _number(fields.get("CoreSpecCount", "0")) * _number(fields.get("ThreadsPerCore", "1"))
        cpus = _number(fields.get("CPUEfctv", "0")) or _number(fields.get("CPUTot", "0")) - kept
        usable[fields.get("NodeName", "")] = cpus
    return tuple(replace(kind, cpus=usable.get(first.get(kind.names, "")) or kind.cpus) for kind in kinds)


# ------------------------------------------------------------------------------------------------- for one job


def look(site: Site, slurm: SlurmSpec, *, cores_open: bool = True) -> Finding:
    """Return what the site says for a job on GPUs. `cores_open`: nothing but zlaunch decides about the cores. Pure."""
    able = able_kinds(site, slurm)
    gpu, why = _gpu(site, able, slurm)
    if gpu is None:
        found = Finding(unknown=why)
    elif slurm.gpu is None:
        found = Finding(gpu, reasons=(Reason(setting="slurm.gpu", value=gpu.title, reason=why),))
    else:
        found = Finding(notes=contradiction(slurm.gpu, gpu, why))
    if cores_open and slurm.cpus_per_task is None and able:
        shares = sorted(_cores(site, kind, batch_job.gpus_per_node(slurm)[1]) for kind in able)
        cores, why = shares[0]
        if cores < shares[-1][0]:
            why += ", the smallest node that can run this"
        if cores:
            reason = Reason(setting="slurm.cpus_per_task", value=cores, reason=why)
            found = replace(found, cpus_per_task=cores, reasons=(*found.reasons, reason))
    if site.gives_no_gpus:
        found = replace(found, notes=(*found.notes, NO_GPUS))
    sizes = sorted(kind.memory_mb for kind in able)
    if slurm.mem is None and sizes and sizes[0] < sizes[-1]:
        note = f"the nodes that can run this have {sizes[0]} to {sizes[-1]} MB of memory: slurm.mem requests enough"
        found = replace(found, notes=(*found.notes, note))
    return found


def _gpu(site: Site, able: Iterable[NodeKind], slurm: SlurmSpec) -> tuple[GpuModel | None, str]:
    """Return the smallest GPU that the job may get, and who says so; None, and why it is not known."""
    wanted, _ = batch_job.gpus_per_node(slurm)
    entries = [(kind, type_) for kind in able for type_ in kind.gpus if wanted in ("", type_)]
    if not entries and not wanted:
        return None, site.unknown or "no node that Slurm lists can run this"
    models = {gpus.of_gres(type_, kind.features) for kind, type_ in entries} or {gpus.of_gres(wanted)}
    where = _shown(entries) if entries else f"slurm.gpus_per_node: {slurm.gpus_per_node}"
    known = [model for model in models if model is not None]
    if len(known) < len(models):
        return None, f"no GPU of the table by {where}"
    smallest = min(known, key=lambda model: model.memory_bytes)
    return smallest, f"{where}: the smallest of {len(models)}" if len(models) > 1 else where


def _shown(entries: Iterable[tuple[NodeKind, str]]) -> str:
    """`gpu:h200:2 of partition 'gpu'`, with features where the GRES has no type."""
    texts = set()
    for kind, type_ in entries:
        features = f" (features {', '.join(sorted(kind.features))})" if kind.features and not type_ else ""
        gres = f"gpu:{type_}:{kind.gpus[type_]}" if type_ else f"gpu:{kind.gpus[type_]}"
        texts.add(f"{gres}{features} of partition {kind.partition!r}")
    return " and ".join(sorted(texts))


def contradiction(given: str, gpu: GpuModel, where: str) -> tuple[str, ...]:
    """Return how the job's slurm.gpu differs from what the site says, if it does. The job's value counts."""
    title, size = gpus.parse_gpu(given)
    named = gpus.identify(title, size)
    if named == gpu or (named is None and abs(size / gpu.memory_bytes - 1) < gpus.SAME_SIZE):
        return ()
    return (f"slurm.gpu: the job says {given}, and Slurm says {gpu.title} ({where}); planned for {given}",)


def able_kinds(site: Site, slurm: SlurmSpec, device: Device = "cuda") -> list[NodeKind]:
    """Return the nodes that Slurm could give to the job. Conditions that only Slurm understands leave nodes in."""
    wanted, count = batch_job.gpus_per_node(slurm) if device == "cuda" else ("", 0)
    names = partitions.chosen(slurm, site.partitions)
    within = _split(slurm.nodelist) if slurm.nodelist else None
    without = set(_split(slurm.exclude or ""))
    memory = memory_of(slurm.mem)
    found = []
    for kind in site.kinds:
        has = kind.gpus.get(wanted, 0) if wanted else sum(kind.gpus.values())
        here = _split(kind.names)
        left_out = bool(here) and (
            all(name in without for name in here)
            or (within is not None and len(within) >= slurm.nodes and not any(name in within for name in here))
        )
        fits = has >= count and kind.cpus >= (slurm.cpus_per_task or 0) and kind.memory_mb >= memory
        if kind.partition in names and fits and not left_out and has_features(kind.features, slurm.constraint):
            found.append(kind)
    return found


def has_features(features: frozenset[str], constraint: str | None) -> bool:
    """Whether a node can meet a constraint of names with & or |; True for the forms that only Slurm understands."""
    if not constraint or not re.fullmatch(r"[\w.,=:+/-]+([&|,][\w.=:+/-]+)*", constraint):
        return True
    if "|" in constraint:
        return "&" in constraint or "," in constraint or any(name in features for name in constraint.split("|"))
    return all(name in features for name in re.split("[&,]", constraint))


def memory_of(mem: str | None) -> int:
    """MB of sbatch's --mem; 0: nothing or everything is requested, or it is not a size."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", (mem or "").strip().upper())
    return round(int(match[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[match[2]]) if match else 0


def _cores(site: Site, kind: NodeKind, count: int) -> tuple[int, str]:
    """Return (CPUs that go with `count` GPUs of a node, why)."""
    partition = site.partitions.get(kind.partition)
    if partition is not None and partition.cpus_per_gpu:
        return partition.cpus_per_gpu * count, f"DefCpuPerGPU={partition.cpus_per_gpu} of partition {kind.partition!r}"
    has, cpus, limit = sum(kind.gpus.values()), kind.cpus, partition.max_cpus_per_node if partition else None
    most = f", at most {limit} per job" if limit is not None and limit < cpus else ""
    share = min(cpus * count // has, limit if limit is not None else cpus)
    return share, f"a node of partition {kind.partition!r} has {cpus} CPUs and {has} GPUs{most}"


def _split(hostlist: str) -> list[str]:
    """The names of a list of hosts as Slurm writes it; empty for a form that only Slurm knows."""
    try:
        return [name for part in re.split(r",(?![^\[]*\])", hostlist) if part for name in expand_ranges(part.strip())]
    except HostfileError:
        return []


def parse_array_limit(config: str) -> int | None:
    """Return the most elements of an array job by `scontrol show config`; None: it does not say."""
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    tasks = re.search(r"^SchedulerParameters\s*=.*\bmax_array_tasks=(\d+)", config, re.MULTILINE)
    limits = [int(found[1]) for found in (size, tasks) if found and int(found[1])]
    return min(limits) if limits else None

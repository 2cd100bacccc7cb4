"""What a run needs of its hosts, and where hosts differ or fall short. Pure.

`facts` is what the far end's `hello` returned on one host (launcher/node/farend/host.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.backends import container_choice
from launcher.errors import UsageError
from launcher.job.spec import JobSpec
from launcher.machine.facts import Gpu, Gpus
from launcher.remote.session import Json
from train.config import Device

COMPARED = ("torch", "transformers", "peft", "deepspeed", "unsloth", "accelerate", "bitsandbytes")
"""Packages whose versions must be the same on all hosts."""
NEEDED = ("torch", "transformers", "peft", "msgspec")
"""Packages without which no training starts, and no adapter answers."""
FOR_RECORDS = ("transformers", "numpy", "msgspec")
"""Packages that reading and tokenizing records needs."""
FOR_CONVERSION = ("torch", "transformers", "safetensors")
"""Packages that the conversion of a checkpoint needs."""
REPORTED = (*COMPARED, "msgspec")
"""Packages whose versions a host reports."""
OLDEST_PYTHON = (3, 8)
CLOCK_SKEW = 30.0
"""Seconds by which a host's clock may differ. Beyond it events, certificates and caches go wrong."""
MIN_FREE_BYTES = 256 << 20
"""Free space that the working directory needs."""


def found_on(facts: Mapping[str, Any]) -> Gpus:
    """Return what the census of a host found; nothing where nobody asked."""
    return Gpus.of(facts["gpus"]) if facts.get("gpus") else Gpus(())


def gpus_of(facts: Json) -> tuple[Gpu, ...]:
    """Return the GPUs that a rank on this host would see, in the order of the slots."""
    return found_on(facts).seen


def shared_gpus(names: Sequence[str], facts: Mapping[int, Json], slots: Sequence[Sequence[int]]) -> dict[int, str]:
    """Return {host: why it cannot have its slots} where a host before it uses one of its GPUs.

    A name says nothing: the same machine may have two, and containers may share one machine's GPUs.
    """
    first_user: dict[str, int] = {}
    problems: dict[int, str] = {}
    for rank, host in facts.items():
        cards = (host.get("gpus") or {}).get("gpus", [])
        for card in (cards[slot] for slot in slots[rank] if slot < len(cards)):
            uuid = card.get("uuid", "")
            known = uuid.startswith(("GPU-", "MIG-"))
            first = first_user.setdefault(uuid if known else f"{host.get('boot_id', rank)} {card['index']}", rank)
            if first != rank:
                same = machine_of(host) == machine_of(facts[first])
                what = f"the same machine as {names[first]}" if same else f"on one machine with {names[first]}"
                hint = "name each machine once, or give each its own GPUs with --include"
                problems.setdefault(rank, f"{what}, so both would use GPU {card['index']} ({uuid}): {hint}")
    return problems


def machine_of(facts: Json) -> tuple[str, str]:
    """Return what a machine is, whatever its names: this boot of a kernel, and the network that a container may own."""
    return facts.get("boot_id", ""), facts.get("network", "")


def shared_machines(names: Sequence[str], facts: Mapping[int, Json]) -> list[str]:
    """Return a sentence for each machine that is several hosts of the run."""
    machines: dict[str, list[int]] = {}
    for rank, host in facts.items():
        machines.setdefault(host.get("boot_id") or f"host {rank}", []).append(rank)
    told = []
    for ranks in machines.values():
        one = len({machine_of(facts[rank]) for rank in ranks}) == 1
        what = "the same machine" if one else "on one machine (the same boot id)"
        if len(ranks) > 1:
            told.append(f"{_list_names([names[rank] for rank in ranks])} are {what}: they share its cores and memory")
    return told


def _list_names(names: Sequence[str]) -> str:
    few = [*names[:3], f"{len(names) - 4} more", names[-1]] if len(names) > 6 else names
    return f"{', '.join(few[:-1])} and {few[-1]}"


def device_of(job: JobSpec, gpus: Mapping[str, int]) -> Device:
    """Return the device of the run from the hosts' GPU counts. Raises UsageError if only some hosts have GPUs."""
    if job.device != "auto":
        return job.device
    without = [name for name, count in gpus.items() if not count]
    if without and len(without) < len(gpus):
        raise UsageError(
            f"no GPU on {', '.join(without)}, but on {', '.join(name for name in gpus if name not in without)}",
            hint="leave out the hosts without GPUs, or use --device cpu",
            code="ZL-GPU-01",
        )
    return "cpu" if without else "cuda"


def uses_environment(job: JobSpec) -> bool:
    """Whether the run needs a training environment on the hosts. A program or an image brings its own."""
    return not job.program and not container_choice.in_container(job, "ssh")


def needed_packages(job: JobSpec) -> tuple[str, ...]:
    """Return the packages without which this training cannot start."""
    sharded = isinstance(job.train.zero_stage, int) and job.train.zero_stage > 0
    return (*NEEDED, "deepspeed") if sharded else NEEDED


def majority(hosts: Iterable[Json]) -> dict[str, str]:
    """Return the version of each package that most hosts have, without packages that most hosts lack."""
    versions = [versions_of(facts) for facts in hosts]
    packages = sorted({package for found in versions for package in found})
    usual = {package: most_common([found.get(package) for found in versions]) for package in packages}
    return {package: version for package, version in usual.items() if version is not None}


def most_common(values: Iterable[str | None]) -> str | None:
    """Return the commonest value, the first among equals. None means "absent" and loses against as many others."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value is not None), default=None)


def versions_of(facts: Json) -> dict[str, str]:
    compared = {package: version for package, version in facts["packages"].items() if package in COMPARED}
    return {"python": ".".join(map(str, facts["version"][:2])), **compared}


def differences(versions: Mapping[str, str], usual: Mapping[str, str]) -> list[str]:
    """Name what a host has in another version than most hosts, lacks, or has alone."""
    found = []
    for package in sorted({*versions, *usual}):
        here, elsewhere = versions.get(package), usual.get(package)
        if here is None:
            found.append(f"{package} is missing, but {elsewhere} on most hosts")
        elif elsewhere is None:
            found.append(f"{package} {here}, but not installed on most hosts")
        elif here != elsewhere:
            found.append(f"{package} {here}, but {elsewhere} on most hosts")
    return found


def find_problems(
    job: JobSpec, facts: Json, slots: Sequence[int], device: Device, skew: float, usual: Mapping[str, str]
) -> dict[str, str]:
    """Return {column of the preflight table: why this host cannot do its part, and what to do}; empty: it can."""
    problems = {
        "python": _python_problem(job, facts, usual),
        "environment": _environment_problem(job, facts, usual),
        "gpus": _gpu_problem(facts, slots) if device == "cuda" or found_on(facts).error else "",
        "clock": _clock_problem(skew),
        "disk": _disk_problem(facts),
        "model": f"no {', '.join(facts['missing'])} there: copy the model, or name a hub id"
        if facts["missing"]
        else "",
    }
    return {column: problem for column, problem in problems.items() if problem}


def _python_problem(job: JobSpec, facts: Json, usual: Mapping[str, str]) -> str:
    if tuple(facts["version"]) < OLDEST_PYTHON:
        return f"Python {'.'.join(map(str, facts['version']))} is too old: 3.8 or newer, see --python"
    version = versions_of(facts)["python"]
    if uses_environment(job) and version != usual["python"]:
        return f"Python {version}, but {usual['python']} on most hosts: make them equal, or see --python"
    return ""


def _environment_problem(job: JobSpec, facts: Json, usual: Mapping[str, str]) -> str:
    if not uses_environment(job):
        return ""
    absent = [package for package in needed_packages(job) if package not in facts["packages"]]
    if absent:
        return f"{', '.join(absent)} not installed for {facts['python']}: name the environment with --python"
    differing = differences(_packages(versions_of(facts)), _packages(usual))
    return f"{'; '.join(differing)}: make them equal" if differing else ""


def _packages(versions: Mapping[str, str]) -> dict[str, str]:
    return {package: version for package, version in versions.items() if package in COMPARED}


def _gpu_problem(facts: Json, slots: Sequence[int]) -> str:
    found = found_on(facts)
    if found.error:
        return f"cannot tell which GPUs it has: {found.error}; repair the driver there, or use --device cpu"
    within = f" ({'; '.join(found.notes)})" if found.notes else ""
    if not slots:
        return f"no GPU found (nvidia-smi){within}"
    count, visible = len(found.seen), (facts.get("gpus") or {}).get("visible")
    if max(slots) < count:
        return ""
    visible = f" (CUDA_VISIBLE_DEVICES={visible} there)" if visible is not None else within
    return (
        f"slot {max(slots)} requested, but the host has {count} GPUs{visible}: correct slots= of the hostfile, or "
        "--exclude"
    )


def _clock_problem(skew: float) -> str:
    if abs(skew) <= CLOCK_SKEW:
        return ""
    return f"clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}: start NTP there (timedatectl)"


def _disk_problem(facts: Json) -> str:
    if facts["workdir_error"]:
        return f"working directory: {facts['workdir_error']}; choose another with --workdir"
    free, needed = facts["free_bytes"] >> 20, MIN_FREE_BYTES >> 20
    if free >= needed:
        return ""
    return f"disk full: {free} MiB free in {facts['workdir']}, {needed} needed; free some or set --workdir"

"""What a run needs of its hosts, and where hosts differ or fall short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from launcher.errors import UsageError
from launcher.images import choose
from launcher.job.spec import JobSpec
from launcher.machine import facts
from launcher.remote.fleet import Json

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "unsloth", "accelerate", "bitsandbytes")
"""What must be the same everywhere if it is anywhere."""


NEEDED = ("torch", "transformers", "peft", "msgspec")
"""What a training cannot do without."""


ASKED = (*PACKAGES, "msgspec")


CLOCK_SKEW = 30.0
"""Seconds by which a host's clock may differ from the others': beyond it events, certificates and caches go wrong."""


ROOM = 256 << 20
"""Bytes that must be free where the run directory goes."""


def gpus_of(said: Json) -> tuple[facts.Gpu, ...]:
    """The GPUs of a host's facts."""
    text = said.get("gpus") or ""
    return tuple(
        gpu for _, gpu in facts.parse_nvidia_smi("\n".join(line.rpartition(",")[0] for line in text.splitlines()))
    )


def drivers_of(said: Json) -> set[str]:
    return {line.rpartition(",")[2].strip() for line in (said.get("gpus") or "").splitlines()}


def device_of(job: JobSpec, gpus: Sequence[int]) -> Literal["cuda", "cpu"]:
    if job.device != "auto":
        return job.device
    if any(gpus) and not all(gpus):
        raise UsageError("some hosts have GPUs and some have none", hint="say --device cuda or --device cpu")
    return "cuda" if any(gpus) else "cpu"


def uses_environment(job: JobSpec) -> bool:
    """Whether the run needs a training environment on the hosts: a program brings its own, and so does an image."""
    return not job.program and not choose.in_container(job, "ssh")


def needed(job: JobSpec) -> tuple[str, ...]:
    """The packages without which this training cannot start."""
    sharded = isinstance(job.train.zero_stage, int) and job.train.zero_stage > 0
    return (*NEEDED, "deepspeed") if sharded else NEEDED


def majority(said: Iterable[Json]) -> dict[str, str]:
    """The version of each package that most hosts have; without those that most hosts lack."""
    all_versions = [versions(facts_) for facts_ in said]
    packages = sorted({package for found in all_versions for package in found})
    usual = {package: most([found.get(package) for found in all_versions]) for package in packages}
    return {package: version for package, version in usual.items() if version is not None}


def most(values: Iterable[str | None]) -> str | None:
    """The commonest value, the first among equals; None stands for "not there" and loses against as many that are."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value is not None), default=None)


def versions(said: Json) -> dict[str, str]:
    compared = {package: version for package, version in said["packages"].items() if package in PACKAGES}
    return {"python": ".".join(map(str, said["version"][:2])), **compared}


def differences(found: Mapping[str, str], usual: Mapping[str, str]) -> list[str]:
    """What a host has otherwise than most hosts, or lacks, or has alone; each by name."""
    told = []
    for package in sorted({*found, *usual}):
        here, there = found.get(package), usual.get(package)
        if here is None:
            told.append(f"{package} is missing, but {there} on most hosts")
        elif there is None:
            told.append(f"{package} {here}, but not installed on most hosts")
        elif here != there:
            told.append(f"{package} {here}, but {there} on most hosts")
    return told


def find_problems(
    job: JobSpec, said: Json, slots: Sequence[int], device: str, skew: float, usual: Mapping[str, str]
) -> list[str]:
    """Why this host cannot carry its part, each with what to do; empty: it can."""
    problems = []
    if said["workdir_error"]:
        problems.append(f"working directory: {said['workdir_error']}; choose another with --workdir")
    elif said["free_bytes"] < ROOM:
        free = said["free_bytes"] >> 20
        problems.append(
            f"disk full: {free} MiB free in {said['workdir']}, {ROOM >> 20} needed; free some or set --workdir"
        )
    if abs(skew) > CLOCK_SKEW:
        problems.append(
            f"clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}: start NTP there (timedatectl)"
        )
    if tuple(said["version"]) < (3, 8):
        problems.append(f"Python {'.'.join(map(str, said['version']))} is too old: 3.8 or newer, see --python")
    if uses_environment(job):
        absent = [package for package in needed(job) if package not in said["packages"]]
        if absent:
            problems.append(
                f"{', '.join(absent)} not installed for {said['python']}: name the environment with --python"
            )
        # What is not installed though it is needed has been said, with what to do.
        rest = {package: version for package, version in usual.items() if package not in absent}
        problems += [f"{difference}: make them equal" for difference in differences(versions(said), rest)]
    if device == "cuda":
        count = len(gpus_of(said))
        if not slots:
            problems.append("no GPU found (nvidia-smi)")
        elif max(slots) >= count:
            problems.append(f"slot {max(slots)} asked for, but the host has {count} GPUs")
    problems += [f"{path} is missing there: copy the model to it, or name a hub id" for path in said["missing"]]
    return problems

"""The table of preflight checks: one row per host, one cell per check, with advice where something blocks. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.backends import container_choice
from launcher.backends.checklist import Cell, Level, Row, driver_cell, memory_cell, size
from launcher.backends.ssh.host_request import HostRequest
from launcher.backends.ssh.image_check import HostImage, image_problems
from launcher.backends.ssh.requirements import (
    REPORTED,
    differences,
    find_problems,
    found_on,
    gpus_of,
    machine_of,
    majority,
    most_common,
    shared_gpus,
)
from launcher.job.inputs import Input
from launcher.job.spec import JobSpec
from launcher.machine.cuda_wheel import CUDA, cpu_build, cuda_of
from launcher.machine.facts import Gpus
from launcher.remote.session import Json
from train.config import Device

SLOW_LOGIN = 3.0
"""Seconds. Every command of a user pays for a slow login file."""
CLOCK_DRIFT = 2.0
"""Seconds beyond which NTP is probably off."""
CLOCK_WARNING: tuple[Level, str] = ("warn", "the clock drifts: is NTP running there?")
NCCL = ("nvidia-nccl-cu11", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "nvidia-nccl-cu14")
PACKAGES = (*REPORTED, *NCCL, *CUDA)


@dataclass
class Inspection:
    """What the hosts answered, by node rank. A host that cannot be reached is in `closed` only."""

    names: list[str]
    closed: dict[int, str] = field(default_factory=dict)
    facts: dict[int, Json] = field(default_factory=dict)
    login: dict[int, float] = field(default_factory=dict)
    """Seconds that the login took."""
    skew: dict[int, float] = field(default_factory=dict)
    sharing: dict[int, list[int]] = field(default_factory=dict)
    """Hosts that see the same working directory."""
    unreached: dict[int, list[int]] = field(default_factory=dict)
    """Hosts that a host could not connect to."""
    present: dict[int, set[str]] = field(default_factory=dict)
    """Hashes of the input files that a host has."""
    images: dict[int, HostImage] = field(default_factory=dict)
    """Empty for a job without a container."""


def make_table(job: JobSpec, request: HostRequest, found: Inspection, inputs: Sequence[Input]) -> list[Row]:
    """Return one row per host. A host that a run would refuse has the same words in its cell."""
    usual = majority(found.facts.values())
    gpus = {rank: len(gpus_of(facts)) for rank, facts in found.facts.items()}
    device: Device = job.device if job.device != "auto" else "cuda" if any(gpus.values()) else "cpu"
    slots = request.slots({found.names[rank]: count if device == "cuda" else 1 for rank, count in gpus.items()})
    cuda = {rank: cuda_versions(job, facts) for rank, facts in found.facts.items()}
    usual_cuda = common_versions([cuda[rank] for rank in cuda if gpus[rank]])
    images = image_problems(found.images)
    shared = shared_gpus(found.names, found.facts, [slots.get(name, []) for name in found.names])
    doubled = {rank: {"gpus": problem} for rank, problem in shared.items()} if device == "cuda" else {}
    table = []
    for rank, name in enumerate(found.names):
        if rank in found.closed:
            table.append(Row(name, {"login": Cell("no", "bad", found.closed[rank])}))
            continue
        facts, skew, host_slots = found.facts[rank], found.skew[rank], slots.get(name, [])
        compared = usual_cuda if device == "cuda" and gpus[rank] else {}
        cells = {
            "login": _login(found.login[rank]),
            "python": Cell(".".join(map(str, facts["version"]))),
            "environment": _environment(job, facts, device == "cuda"),
            "image": _image(found.images.get(rank), images.get(rank, [])),
            "gpus": _gpus(device, found_on(facts), host_slots),
            "driver": _driver(job, facts, cuda[rank], compared),
            "clock": Cell(f"{skew:+.1f} s", *CLOCK_WARNING if abs(skew) > CLOCK_DRIFT else ()),
            "disk": Cell("-" if facts["workdir_error"] else size(facts["free_bytes"])),
            "memory": _memory(found, rank),
            "filesystem": _filesystem(found, rank),
            "network": _network(found, rank),
            "model": Cell(_model(job, facts)),
            "data": _data(inputs, found.present.get(rank, set())),
        }
        problems = find_problems(job, facts, host_slots, device, skew, usual)
        for column, problem in (problems | doubled.get(rank, {})).items():
            cells[column] = Cell(cells[column].text, "bad", problem)
        table.append(Row(name, cells))
    return table


def _login(seconds: float) -> Cell:
    if seconds < SLOW_LOGIN:
        return Cell(f"{seconds:.1f} s")
    return Cell(f"{seconds:.1f} s", "warn", "the login is slow: look at ~/.bashrc and at UseDNS of sshd there")


def _environment(job: JobSpec, facts: Json, on_gpus: bool) -> Cell:
    if container_choice.in_container(job, "ssh"):
        return Cell("in the image")
    text = f"torch {facts['packages']['torch']}" if "torch" in facts["packages"] else "no torch"
    gpus = found_on(facts)
    wrong = cpu_build(facts["packages"], gpus.driver, gpus.seen) if on_gpus and gpus.seen and not job.program else ""
    return Cell(text, "bad" if wrong else "ok", wrong)


def _image(image: HostImage | None, problems: Sequence[str]) -> Cell:
    if image is None:
        return Cell("-")
    text = "no" if image.problem else image.id.removeprefix("sha256:")[:12] or "there"
    return Cell(text, "bad", "; ".join(problems)) if problems else Cell(text)


def _gpus(device: Device, found: Gpus, slots: Sequence[int]) -> Cell:
    if device == "cpu":
        return Cell(f"CPU, slots: {len(slots)}")
    notes = "; ".join(found.notes)
    return Cell(f"{len(found.seen)} for {len(slots)} slots", "warn" if notes else "ok", notes)


def cuda_versions(job: JobSpec, facts: Json) -> dict[str, str]:
    """Return what must be equal for GPUs to talk to each other: the driver, and CUDA and NCCL of the environment."""
    packages: dict[str, str] = facts["packages"] if not container_choice.in_container(job, "ssh") else {}
    found = {
        "driver": found_on(facts).driver,
        "CUDA": cuda_of(packages),
        "NCCL": next((packages[name] for name in NCCL if name in packages), ""),
    }
    return {name: version for name, version in found.items() if version}


def common_versions(hosts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the driver, CUDA and NCCL that most hosts have."""
    usual = {name: most_common(versions.get(name) for versions in hosts) for name in ("driver", "CUDA", "NCCL")}
    return {name: version for name, version in usual.items() if version}


def _driver(job: JobSpec, facts: Json, versions: Mapping[str, str], usual: Mapping[str, str]) -> Cell:
    """`usual` is empty where nothing is compared: in a run on CPUs, and on a host without a GPU."""
    text = ", ".join(v if name == "driver" else f"{name} {v}" for name, v in versions.items()) or "-"
    if not usual:
        return Cell(text)
    differing = differences(versions, usual)
    alone = driver_cell(found_on(facts), facts["packages"], container_choice.in_container(job, "ssh"))
    advice = [f"{'; '.join(differing)}: make driver, CUDA and NCCL equal"] if differing else []
    return Cell(text, "bad" if differing else alone.level, "; ".join(filter(None, [*advice, alone.advice])))


def _memory(found: Inspection, rank: int) -> Cell:
    here, free = machine_of(found.facts[rank]), found.facts[rank]["memory_bytes"]
    before = [other for other in found.facts if other < rank and any(here)]
    doubles = [found.names[other] for other in before if machine_of(found.facts[other]) == here]
    if doubles:
        text = memory_cell(free).text
        return Cell(text, "warn", f"the same machine as {doubles[0]}: they share its cores and memory")
    return memory_cell(free)


def _filesystem(found: Inspection, rank: int) -> Cell:
    others = [other for other in found.sharing.get(rank, []) if other != rank]
    return Cell(f"shared with {len(others)}" if others else "own")


def _network(found: Inspection, rank: int) -> Cell:
    unreached = [found.names[other] for other in found.unreached.get(rank, [])]
    if unreached:
        return Cell(
            "blocked", "bad",
            f"cannot connect to {', '.join(unreached)}: open TCP ports 10000-29999 between the hosts, or name an "
            f"address of {found.names[0]} that all others reach with --master-addr",
        )  # fmt: skip
    return Cell("ok")


def _model(job: JobSpec, facts: Json) -> str:
    if facts["missing"]:
        return "missing"
    return "there" if job.model.path.startswith(("/", "~")) else "hub" if job.model.path else "-"


def _data(inputs: Sequence[Input], present: set[str]) -> Cell:
    if not inputs:
        return Cell("-")
    # The same content is sent once, under however many names.
    sizes = {file.sha256: file.size for file in inputs if file.sha256 not in present}
    return Cell(f"{size(sum(sizes.values()))} to send" if sizes else "there")

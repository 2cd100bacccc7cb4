"""Preflight checks of hosts: what each one is like, side by side, and what stands in the way of a run."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from launcher.backends.ssh import rendezvous, requirements, survey
from launcher.images import choose, on_hosts
from launcher.images.on_hosts import HostImage
from launcher.job.inputs import Input
from launcher.job.spec import JobSpec
from launcher.remote.fleet import Fleet, Json, Session

Level = Literal["ok", "warn", "bad"]

COLUMNS = (
    "login",
    "python",
    "environment",
    "image",
    "gpus",
    "driver",
    "clock",
    "disk",
    "memory",
    "filesystem",
    "network",
    "model",
    "data",
)
SLOW_LOGIN = 3.0
"""Seconds; every command of a user pays for a slow login file."""
LITTLE_MEMORY = 2 << 30
ALL_PAIRS = 32
"""Hosts up to which every one tries to reach every other; beyond it only the first, which the run depends on."""
NCCL = ("nvidia-nccl-cu11", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "nvidia-nccl-cu14")
CUDA = ("nvidia-cuda-runtime-cu11", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime")
"""NVIDIA's packages of the CUDA runtime, which lost the suffix with CUDA 13; wheels of torch bring one."""
PACKAGES = (*requirements.ASKED, *NCCL, *CUDA)


@dataclass(frozen=True)
class Cell:
    text: str
    level: Level = "ok"
    advice: str = ""


@dataclass
class Row:
    host: str
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def blocks(self) -> bool:
        return any(cell.level == "bad" for cell in self.cells.values())


@dataclass
class Findings:
    """What the hosts said, by node rank; a host that cannot be reached stands in `closed` only."""

    names: list[str]
    closed: dict[int, str] = field(default_factory=dict)
    said: dict[int, Json] = field(default_factory=dict)
    login: dict[int, float] = field(default_factory=dict)
    skew: dict[int, float] = field(default_factory=dict)
    seen: dict[int, list[int]] = field(default_factory=dict)
    unreached: dict[int, list[int]] = field(default_factory=dict)
    """Hosts that a host could not connect to."""
    present: dict[int, set[str]] = field(default_factory=dict)
    """Hashes of the input files that a host has."""
    images: dict[int, HostImage] = field(default_factory=dict)
    """Empty for a job without a container."""


def examine(job: JobSpec, inputs: Sequence[Input]) -> list[Row]:
    """Ask all hosts of the job, in parallel; a row for each. Raises UsageError."""
    asked = survey.wanted(job.ssh)
    choose.runtime_of(job, "ssh")  # what no host could run is refused before one is asked
    fleet = Fleet(asked.names, survey.options(job.ssh), job.ssh.python)
    try:
        return rows(job, asked, find(job, fleet, inputs), inputs)
    finally:
        fleet.close()


def find(job: JobSpec, fleet: Fleet, inputs: Sequence[Input]) -> Findings:
    found = Findings([session.name for session in fleet.sessions])
    opened, closed = fleet.each(lambda _, session: session.open())
    up = sorted(opened)
    token = secrets.token_hex(8)
    found.said, found.skew, refused = survey.greet_some(fleet, job, token, PACKAGES, up)
    found.closed = {rank: str(error) for rank, error in {**closed, **refused}.items()}
    up = sorted(found.said)
    found.login = {rank: fleet.sessions[rank].login_seconds for rank in up}
    places = {rank: found.said[rank]["workdir"] for rank in up}
    marks, _ = fleet.each(lambda rank, session: session.call("shared_dir_marks", workdir=places[rank], token=token), up)
    found.seen = {rank: answer["seen"] for rank, answer in marks.items()}
    fleet.each(
        lambda rank, session: session.call("shared_dir_marks", workdir=places[rank], token=token, clean=True), up
    )
    found.unreached = connect_all(fleet, found.said, job.ssh.master_addr)
    device = (
        "cuda" if job.device != "cpu" and any(requirements.gpus_of(said) for said in found.said.values()) else "cpu"
    )
    found.images = survey.ask_images(fleet, job, device, up)
    items = [file.item for file in inputs]
    have, _ = fleet.each(
        lambda rank, session: session.call("find_inputs", inputs=items, workdir=places[rank], timeout=600),
        up if items else [],
    )
    found.present = {rank: set(answer["found"]) for rank, answer in have.items()}
    return found


def connect_all(fleet: Fleet, said: Mapping[int, Json], master_addr: str | None) -> dict[int, list[int]]:
    """{host: hosts it cannot connect to}; every host listens for a moment, at all addresses that a run would try."""
    ranks = sorted(said)
    servers = ranks if len(ranks) <= ALL_PAIRS else ranks[:1]
    doors, failed = fleet.each(
        lambda rank, session: rendezvous.open_door(session, rank, said, None if rank else master_addr), servers
    )

    def ask(rank: int, session: Session) -> dict[int, set[str]]:
        asked = {other: door for other, door in doors.items() if other != rank}
        targets = [target for door in asked.values() for target in door.targets]
        reached = iter(session.call("reach", targets=targets, seconds=rendezvous.REACH_SECONDS, timeout=30)["reached"])
        return {other: {address for address in door.addresses if next(reached)} for other, door in asked.items()}

    answers, _ = fleet.each(ask, ranks)
    fleet.each(lambda _, session: session.call("unlisten"), servers)
    return silent(ranks, {rank: door.addresses for rank, door in doors.items()}, set(failed), answers)


def silent(
    ranks: Sequence[int],
    addresses: Mapping[int, Sequence[str]],
    failed: set[int],
    reached: Mapping[int, Mapping[int, set[str]]],
) -> dict[int, list[int]]:
    """{host: hosts it cannot connect to} from the addresses at which each host got an answer of each other. Pure.

    Any address will do between two hosts; the first host of a run has one for all others, so one must do for all.
    """
    answers = [found.get(0, set()) for rank, found in reached.items() if rank]
    best = requirements.most(address for address in addresses.get(0, ()) for found in answers if address in found)

    def met(rank: int, other: int) -> bool:
        answered = reached[rank].get(other, set())
        return best in answered if other == 0 else bool(answered)

    return {
        rank: [
            other
            for other in (*addresses, *sorted(failed))
            if other != rank and (rank not in reached or other in failed or not met(rank, other))
        ]
        for rank in ranks
    }


def rows(job: JobSpec, asked: survey.Wanted, found: Findings, inputs: Sequence[Input]) -> list[Row]:
    """The table. Pure."""
    usual = requirements.majority(found.said.values())
    gpus = {rank: len(requirements.gpus_of(said)) for rank, said in found.said.items()}
    device = job.device if job.device != "auto" else "cuda" if any(gpus.values()) else "cpu"
    each = {found.names[rank]: count if device == "cuda" else 1 for rank, count in gpus.items()}
    slots = asked.slots(each)
    cuda = {rank: cuda_versions(job, said) for rank, said in found.said.items()}
    usual_cuda = common_versions([cuda[rank] for rank in cuda if gpus[rank]])
    table = []
    for rank, name in enumerate(found.names):
        row = Row(name)
        table.append(row)
        if rank in found.closed:
            row.cells["login"] = Cell("no", "bad", found.closed[rank])
            continue
        said = found.said[rank]
        row.cells = {
            "login": _login(found.login[rank]),
            "python": _python(job, said, usual),
            "environment": _environment(job, said, usual),
            "image": _image(found, rank),
            "gpus": _gpus(device, gpus[rank], slots.get(name, [])),
            "driver": _driver(cuda[rank], usual_cuda if device == "cuda" and gpus[rank] else {}),
            "clock": _clock(found.skew[rank]),
            "disk": _disk(said),
            "memory": _memory(said),
            "filesystem": _filesystem(found, rank),
            "network": _network(found, rank),
            "model": _model(job, said),
            "data": _data(inputs, found.present.get(rank, set())),
        }
    return table


def _login(seconds: float) -> Cell:
    if seconds < SLOW_LOGIN:
        return Cell(f"{seconds:.1f} s")
    return Cell(f"{seconds:.1f} s", "warn", "the login is slow: look at ~/.bashrc and at UseDNS of sshd there")


def _python(job: JobSpec, said: Json, usual: Mapping[str, str]) -> Cell:
    version = ".".join(map(str, said["version"]))
    if tuple(said["version"]) < (3, 8):
        return Cell(version, "bad", f"{said['python']} is too old: 3.8 or newer, see --python")
    if requirements.uses_environment(job) and requirements.versions(said)["python"] != usual["python"]:
        return Cell(version, "bad", f"most hosts have Python {usual['python']}: make them equal, or see --python")
    return Cell(version)


def _environment(job: JobSpec, said: Json, usual: Mapping[str, str]) -> Cell:
    if choose.in_container(job, "ssh"):
        return Cell("in the image")
    packages = {package: version for package, version in said["packages"].items() if package in requirements.PACKAGES}
    torch = f"torch {packages['torch']}" if "torch" in packages else "no torch"
    if job.program:
        return Cell(torch)  # shown only: what a program needs it knows itself
    absent = [package for package in requirements.needed(job) if package not in said["packages"]]
    if absent:
        advice = f"{', '.join(absent)} not installed for {said['python']}: name the environment with --python"
        return Cell(torch, "bad", advice)
    other = requirements.differences(packages, {p: v for p, v in usual.items() if p in requirements.PACKAGES})
    if other:
        return Cell(torch, "bad", f"{'; '.join(other)}: make them equal")
    return Cell(torch)


def _image(found: Findings, rank: int) -> Cell:
    has = found.images.get(rank)
    if has is None:
        return Cell("-")
    if has.problem:
        return Cell("no", "bad", "; ".join(filter(None, (has.problem, has.advice))))
    text = has.id.removeprefix("sha256:")[:12] or "there"
    other = on_hosts.different(found.images).get(rank)
    if other:
        return Cell(text, "bad", f"the image is {has.id}, but {other} on most hosts: {on_hosts.MAKE_EQUAL}")
    return Cell(text)


def _gpus(device: str, count: int, slots: Sequence[int]) -> Cell:
    text = f"{count} for {len(slots)} slots" if device == "cuda" else f"CPU, slots: {len(slots)}"
    if device == "cuda" and not slots:
        return Cell("0", "bad", "no GPU found (nvidia-smi)")
    if device == "cuda" and max(slots) >= count:
        return Cell(text, "bad", f"slot {max(slots)} is asked for: correct slots= of the hostfile, or --exclude")
    return Cell(text)


def cuda_versions(job: JobSpec, said: Json) -> dict[str, str]:
    """What must be equal for GPUs to talk to each other: the host's driver, and what its environment brings along."""
    packages: dict[str, str] = said["packages"] if not choose.in_container(job, "ssh") else {}
    found = {
        "driver": ", ".join(sorted(requirements.drivers_of(said))),
        "CUDA": cuda_of(packages),
        "NCCL": next((packages[name] for name in NCCL if name in packages), ""),
    }
    return {name: version for name, version in found.items() if version}


def cuda_of(packages: Mapping[str, str]) -> str:
    """`13.0` from torch's local version tag (2.11.0+cu130), else from the runtime's package; empty: nothing tells."""
    tag = re.search(r"\+cu(\d+)(\d)(?!\d)", packages.get("torch", ""))
    if tag:
        return f"{tag[1]}.{tag[2]}"
    runtime = next((packages[name] for name in CUDA if name in packages), "")
    return ".".join(runtime.split(".")[:2])


def common_versions(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The driver, CUDA and NCCL that most hosts have."""
    usual = {name: requirements.most(versions.get(name) for versions in found) for name in ("driver", "CUDA", "NCCL")}
    return {name: version for name, version in usual.items() if version}


def _driver(found: Mapping[str, str], usual: Mapping[str, str]) -> Cell:
    """`usual` is empty where nothing is compared: in a run on CPUs, and on a host that has no GPU at all."""
    text = ", ".join(v if name == "driver" else f"{name} {v}" for name, v in found.items()) or "-"
    other = requirements.differences(found, usual) if usual else []
    if other:
        return Cell(text, "bad", f"{'; '.join(other)}: make driver, CUDA and NCCL equal")
    return Cell(text)


def _clock(skew: float) -> Cell:
    text = f"{skew:+.1f} s"
    if abs(skew) > requirements.CLOCK_SKEW:
        return Cell(text, "bad", "the clock is wrong: start NTP there (timedatectl)")
    return Cell(text, "warn", "the clock drifts: is NTP running there?") if abs(skew) > 2 else Cell(text)


def _disk(said: Json) -> Cell:
    if said["workdir_error"]:
        return Cell("-", "bad", f"{said['workdir_error']}; choose another directory with --workdir")
    text = _bytes(said["free_bytes"])
    if said["free_bytes"] < requirements.ROOM:
        return Cell(
            text, "bad", f"less than {_bytes(requirements.ROOM)} free in {said['workdir']}: free some, or --workdir"
        )
    return Cell(text)


def _memory(said: Json) -> Cell:
    free = said["memory_bytes"]
    if free is None:
        return Cell("?")
    return Cell(_bytes(free), "warn", "little memory is free") if free < LITTLE_MEMORY else Cell(_bytes(free))


def _filesystem(found: Findings, rank: int) -> Cell:
    others = [found.names[other] for other in found.seen.get(rank, []) if other != rank]
    return Cell(f"shared with {len(others)}" if others else "own")


def _network(found: Findings, rank: int) -> Cell:
    silent = [found.names[other] for other in found.unreached.get(rank, [])]
    if silent:
        return Cell(
            "blocked", "bad",
            f"cannot connect to {', '.join(silent)}: open TCP ports 10000-29999 between the hosts, or name an address "
            f"of {found.names[0]} that all others reach with --master-addr",
        )  # fmt: skip
    return Cell("ok")


def _model(job: JobSpec, said: Json) -> Cell:
    if said["missing"]:
        return Cell("missing", "bad", f"no {', '.join(said['missing'])} there: copy the model, or name a hub id")
    return Cell("there" if job.model.path.startswith(("/", "~")) else "hub" if job.model.path else "-")


def _data(inputs: Sequence[Input], present: set[str]) -> Cell:
    left = [file for file in inputs if file.sha256 not in present]
    if not inputs:
        return Cell("-")
    sizes = {file.sha256: file.size for file in left}  # one content is sent once, under however many names
    return Cell(f"{_bytes(sum(sizes.values()))} to send" if left else "there")


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"

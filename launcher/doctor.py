"""Preflight checks of hosts: what each one is like, side by side, and what stands in the way of a run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from launcher import bundle, hosts, image
from launcher.fleet import Fleet, Json
from launcher.spec import JobSpec

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
PACKAGES = (*hosts.PACKAGES, "nvidia-nccl-cu12", "nvidia-nccl-cu13")


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
    images: dict[int, image.HostImage] = field(default_factory=dict)
    """Empty for a job without a container."""


def examine(job: JobSpec, inputs: Sequence[bundle.Input]) -> list[Row]:
    """Ask all hosts of the job, in parallel; a row for each. Raises HostfileError."""
    asked = hosts.wanted(job.ssh)
    fleet = Fleet(asked.names, hosts.options(job.ssh), job.ssh.python)
    try:
        return rows(job, asked, find(job, fleet, inputs), inputs)
    finally:
        fleet.close()


def find(job: JobSpec, fleet: Fleet, inputs: Sequence[bundle.Input]) -> Findings:
    found = Findings([session.name for session in fleet.sessions])
    opened, closed = fleet.each(lambda _, session: session.open())
    up = sorted(opened)
    token = secrets.token_hex(8)
    found.said, found.skew, refused = hosts.greet_some(fleet, job, token, PACKAGES, up)
    found.closed = {rank: str(error) for rank, error in {**closed, **refused}.items()}
    up = sorted(found.said)
    found.login = {rank: fleet.sessions[rank].login_seconds for rank in up}
    places = {rank: found.said[rank]["workdir"] for rank in up}
    marks, _ = fleet.each(lambda rank, session: session.call("marks", workdir=places[rank], token=token), up)
    found.seen = {rank: answer["seen"] for rank, answer in marks.items()}
    fleet.each(lambda rank, session: session.call("marks", workdir=places[rank], token=token, clean=True), up)
    found.unreached = connect_all(fleet, found.said)
    device = "cuda" if job.device != "cpu" and any(hosts.gpus_of(said) for said in found.said.values()) else "cpu"
    found.images = hosts.ask_images(fleet, job, device, up)
    items = [file.item for file in inputs]
    have, _ = fleet.each(
        lambda rank, session: session.call("have", inputs=items, workdir=places[rank], timeout=600), up if items else []
    )
    found.present = {rank: set(answer["found"]) for rank, answer in have.items()}
    return found


def connect_all(fleet: Fleet, said: Mapping[int, Json]) -> dict[int, list[int]]:
    """{host: hosts it cannot connect to}; every host listens for a moment."""
    ranks = sorted(said)
    servers = ranks if len(ranks) <= ALL_PAIRS else ranks[:1]
    nonces = {rank: secrets.token_hex(16) for rank in servers}
    opened, failed = fleet.each(lambda rank, session: session.call("listen", nonce=nonces[rank], peers=[]), servers)
    targets = {rank: [said[rank]["address"], opened[rank]["ports"][0], nonces[rank]] for rank in opened}

    def ask(rank: int, session: Any) -> list[int]:
        others = [other for other in targets if other != rank]
        asked = [targets[other] for other in others]
        reached = session.call("reach", targets=asked, seconds=hosts.REACH_SECONDS, timeout=30)["reached"]
        silent = [other for other, ok in zip(others, reached, strict=True) if not ok]
        return silent + [other for other in failed if other != rank]

    answers, broken = fleet.each(ask, ranks)
    fleet.each(lambda _, session: session.call("unlisten"), servers)
    return {**answers, **{rank: [other for other in ranks if other != rank] for rank in broken}}


def rows(job: JobSpec, asked: hosts.Wanted, found: Findings, inputs: Sequence[bundle.Input]) -> list[Row]:
    """The table. Pure."""
    usual = hosts.majority(found.said.values())
    gpus = {rank: len(hosts.gpus_of(said)) for rank, said in found.said.items()}
    device = job.device if job.device != "auto" else "cuda" if any(gpus.values()) else "cpu"
    each = {found.names[rank]: count if device == "cuda" else 1 for rank, count in gpus.items()}
    slots = asked.slots(each)
    drivers = [driver for said in found.said.values() for driver in hosts.drivers_of(said)]
    usual_driver = max(sorted(set(drivers)), key=drivers.count, default="")
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
            "python": _python(said, usual),
            "environment": _environment(job, said, usual),
            "image": _image(found, rank),
            "gpus": _gpus(device, gpus[rank], slots.get(name, [])),
            "driver": _driver(said, usual_driver),
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


def _python(said: Json, usual: Mapping[str, str]) -> Cell:
    version = ".".join(map(str, said["version"]))
    if tuple(said["version"]) < (3, 8):
        return Cell(version, "bad", f"{said['python']} is too old: 3.8 or newer, see --python")
    if hosts.versions(said)["python"] != usual["python"]:
        return Cell(version, "bad", f"most hosts have Python {usual['python']}: make them equal, or see --python")
    return Cell(version)


def _environment(job: JobSpec, said: Json, usual: Mapping[str, str]) -> Cell:
    packages: dict[str, str] = said["packages"]
    if job.container.image:
        return Cell("in the image")
    torch = f"torch {packages['torch']}" if "torch" in packages else "no torch"
    absent = [package for package in hosts.NEEDED if package not in packages]
    if absent and not job.program:
        advice = f"{', '.join(absent)} not installed for {said['python']}: name the environment with --python"
        return Cell(torch, "bad", advice)
    other = [f"{p} {v} (most have {usual[p]})" for p, v in sorted(packages.items()) if v != usual[p]]
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
    other = image.different(found.images).get(rank)
    if other:
        return Cell(text, "bad", f"the image is {has.id}, but {other} on most hosts: {image.MAKE_EQUAL}")
    return Cell(text)


def _gpus(device: str, count: int, slots: Sequence[int]) -> Cell:
    text = f"{count} for {len(slots)} slots" if device == "cuda" else f"CPU, {len(slots)} slots"
    if device == "cuda" and not slots:
        return Cell("0", "bad", "no GPU found (nvidia-smi)")
    if device == "cuda" and max(slots) >= count:
        return Cell(text, "bad", f"slot {max(slots)} is asked for: correct slots= of the hostfile, or --exclude")
    return Cell(text)


def _driver(said: Json, usual: str) -> Cell:
    versions = sorted(hosts.drivers_of(said))
    text = ", ".join(versions) or "-"
    nccl = next((v for p, v in said["packages"].items() if p.startswith("nvidia-nccl")), None)
    text += f", NCCL {nccl}" if nccl else ""
    if versions and versions != [usual]:
        return Cell(text, "warn", f"most hosts have driver {usual}: mixed drivers may not support the same CUDA")
    return Cell(text)


def _clock(skew: float) -> Cell:
    text = f"{skew:+.1f} s"
    if abs(skew) > hosts.CLOCK_SKEW:
        return Cell(text, "bad", "the clock is wrong: start NTP there (timedatectl)")
    return Cell(text, "warn", "the clock drifts: is NTP running there?") if abs(skew) > 2 else Cell(text)


def _disk(said: Json) -> Cell:
    if said["workdir_error"]:
        return Cell("-", "bad", f"{said['workdir_error']}; choose another directory with --workdir")
    text = _bytes(said["free_bytes"])
    if said["free_bytes"] < hosts.ROOM:
        return Cell(text, "bad", f"less than {_bytes(hosts.ROOM)} free in {said['workdir']}: free some, or --workdir")
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
            "blocked", "bad", f"cannot connect to {', '.join(silent)}: open TCP ports 10000-29999 between the hosts"
        )
    return Cell("ok")


def _model(job: JobSpec, said: Json) -> Cell:
    if said["missing"]:
        return Cell("missing", "bad", f"no {', '.join(said['missing'])} there: copy the model, or name a hub id")
    return Cell("there" if job.model.path.startswith(("/", "~")) else "hub" if job.model.path else "-")


def _data(inputs: Sequence[bundle.Input], present: set[str]) -> Cell:
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

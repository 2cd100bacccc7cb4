"""Which hosts a run gets, what they are like, and whether they can carry it: the survey before anything starts.

wanted(job) -> Fleet.open -> hello everywhere -> shared marks, ports, addresses -> Survey -> Target
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launcher.backends.ssh import hostfile
from launcher.backends.ssh.rendezvous import address_for_all, meet, open_door
from launcher.backends.ssh.requirements import ASKED, device_of, find_problems, gpus_of, majority, uses_environment
from launcher.errors import HostfileError, HostsError, TargetError
from launcher.images import choose, on_hosts
from launcher.images.on_hosts import HostImage
from launcher.job.spec import JobSpec, SshSpec
from launcher.machine import facts
from launcher.plan.types import Target
from launcher.remote import address
from launcher.remote.connect import Options
from launcher.remote.fleet import Fleet, Json, Session


@dataclass(frozen=True)
class Wanted:
    """The hosts of a job before anyone asked them: name -> slots, None where their GPUs decide."""

    pool: dict[str, int | None]
    include: str
    exclude: str

    @property
    def names(self) -> list[str]:
        """The hosts that have a part in the run at all; the others are not even connected to."""
        guess = {name: 4096 if slots is None else slots for name, slots in self.pool.items()}
        return [name for name, slots in hostfile.select(guess, self.include, self.exclude).items() if slots]

    def slots(self, counted: Mapping[str, int]) -> dict[str, list[int]]:
        """The slots to use on each host; `counted` says how many a host has that did not say itself."""
        pool = {name: counted.get(name, 0) if slots is None else slots for name, slots in self.pool.items()}
        return {name: slots for name, slots in hostfile.select(pool, self.include, self.exclude).items() if slots}


def wanted(ssh: SshSpec) -> Wanted:
    """The hosts that the job names. Raises HostfileError."""
    include, exclude = ssh.include or "", ssh.exclude or ""
    if ssh.hosts and ssh.hostfile:
        raise HostfileError("both hosts and a hostfile are given", hint="give one of --hosts and --hostfile")
    file = ssh.hostfile or _as_file(ssh.hosts)
    if file:
        pool: dict[str, int | None] = dict(hostfile.load(Path(file).expanduser()))
        for name in pool:
            address.parse_address(name, where=file)
    elif ssh.hosts:
        pool = dict.fromkeys(hostfile.parse_hosts(ssh.hosts), ssh.slots)
    else:
        raise HostfileError("no hosts are given", hint="say --hosts node1,node2 or --hostfile FILE")
    found = Wanted(pool, include, exclude)
    if not found.names:
        raise HostfileError(
            "no slot is left on any host", hint="look at --include, --exclude and slots= of the hostfile"
        )
    return found


def _as_file(hosts: str | tuple[str, ...] | None) -> str | None:
    """`hosts: hosts.txt` means the file; a host's name has no slash and is no file here."""
    if not isinstance(hosts, str) or "," in hosts:
        return None
    return hosts if "/" in hosts or hosts.endswith(".txt") or Path(hosts).is_file() else None


def options(ssh: SshSpec) -> Options:
    return Options(ssh.ssh_config, ssh.accept_new_host_keys, ssh.connect_timeout)


@dataclass
class Survey:
    """What the hosts said; node rank is the index everywhere."""

    fleet: Fleet
    facts: dict[int, Json]
    slots: list[list[int]]
    device: Literal["cuda", "cpu"]
    leaders: list[int]
    """For each host the first host that sees the same working directory: itself, if it shares it with none before."""
    python: str
    ports: tuple[int, int]
    master_addr: str
    skew: dict[int, float] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [session.name for session in self.fleet.sessions]

    def workdir(self, rank: int) -> str:
        return str(self.facts[rank]["workdir"])

    def environment(self, rank: int) -> dict[str, str]:
        """What only this host's agent gets: which GPUs to use, where that is not simply the first ones."""
        chosen = self.slots[rank]
        plain = chosen == list(range(len(chosen))) and len(chosen) == len(gpus_of(self.facts[rank]))
        if self.device == "cpu" or plain:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, chosen))}


def survey(job: JobSpec) -> Survey:
    """Connect to the job's hosts and learn all that planning needs. Raises UsageError, and HostsError with a line
    for every host."""
    asked = wanted(job.ssh)
    choose.runtime_of(job, "ssh")  # what no host could run is refused before one is asked
    fleet = Fleet(asked.names, options(job.ssh), job.ssh.python)
    try:
        fleet.open()
        return _survey(job, asked, fleet)
    except BaseException:
        fleet.close()
        raise


def _survey(job: JobSpec, asked: Wanted, fleet: Fleet) -> Survey:
    token = secrets.token_hex(8)
    said, skew = greet(fleet, job, token)
    device = device_of(job, [len(gpus_of(facts)) for facts in said.values()])
    ranks = range(len(fleet))
    each = {fleet.sessions[rank].name: len(gpus_of(said[rank])) if device == "cuda" else 1 for rank in ranks}
    by_name = asked.slots(each)
    slots = [by_name.get(session.name, []) for session in fleet.sessions]
    problems = {
        rank: find_problems(job, said[rank], slots[rank], device, skew[rank], majority(said.values())) for rank in ranks
    }
    refuse("the hosts are not ready", fleet, problems)
    refuse("the hosts cannot run the image", fleet, image_problems(ask_images(fleet, job, device, ranks)))
    door = open_door(fleet.sessions[0], 0, said, job.ssh.master_addr)
    met = meet(fleet, said, token, door)
    leaders = [min(met[rank]["seen"], default=rank) for rank in ranks]
    ports, master = door.ports, address_for_all(fleet, door, met, job.ssh.master_addr)
    return Survey(fleet, said, slots, device, leaders, python_of(job, said, fleet), ports, master, skew)


def greet(fleet: Fleet, job: JobSpec, token: str) -> tuple[dict[int, Json], dict[int, float]]:
    """Every host's facts, and its clock's distance in seconds from the middle of all clocks. Raises HostsError."""
    # A program's or an image's run needs none of them there, and looking for them is most of a host's answer.
    packages = ASKED if uses_environment(job) else ()
    said, skew, refused = greet_some(fleet, job, token, packages, range(len(fleet)))
    refuse("the hosts cannot be asked", fleet, {rank: [str(error)] for rank, error in refused.items()})
    return said, skew


def greet_some(
    fleet: Fleet, job: JobSpec, token: str, packages: Sequence[str], ranks: Iterable[int]
) -> tuple[dict[int, Json], dict[int, float], dict[int, TargetError]]:
    """Facts and clock skew (against the middle of all clocks, ours too) of hosts that answer; why others do not."""
    offsets: dict[int, float] = {}
    paths = [job.model.path] if job.model.path.startswith(("/", "~")) and not job.program else []

    def ask(rank: int, session: Session) -> Json:
        before = time.time()
        answer = session.call(
            "hello", workdir=job.ssh.workdir, token=token, index=rank, packages=list(packages),
            gpus=job.device != "cpu", paths=paths,
        )  # fmt: skip
        offsets[rank] = answer["time"] - (before + time.time()) / 2
        return answer

    said, refused = fleet.each(ask, ranks)
    middle = statistics.median_low([0.0, *offsets.values()])
    return said, {rank: offset - middle for rank, offset in offsets.items()}, refused


def ask_images(fleet: Fleet, job: JobSpec, device: str, ranks: Iterable[int]) -> dict[int, HostImage]:
    """What each host has under the name of the job's image; empty for a job without a container."""
    asked = on_hosts.question(job, device)
    if asked is None:
        return {}
    answers, failed = fleet.each(
        lambda _, session: session.call(
            "image", engine=list(asked.argv), name=asked.image, environ=dict(asked.environ), timeout=65
        ),
        ranks,
    )
    said = {rank: on_hosts.answer(asked, answer) for rank, answer in answers.items()}
    return {**said, **{rank: HostImage(problem=str(error)) for rank, error in failed.items()}}


def image_problems(found: Mapping[int, HostImage]) -> dict[int, list[str]]:
    """Why hosts cannot run the image, each with what to do."""
    other = on_hosts.different(found)
    problems: dict[int, list[str]] = {rank: [] for rank in found}
    for rank, has in found.items():
        if has.problem:
            problems[rank] = ["; ".join(filter(None, (has.problem, has.advice)))]
        elif rank in other:
            problems[rank] = [f"its image is {has.id}, but {other[rank]} on most hosts; {on_hosts.MAKE_EQUAL}"]
    return problems


def refuse(what: str, fleet: Fleet, problems: Mapping[int, Sequence[str]]) -> None:
    """Raise HostsError with every host's line if any host has a problem."""
    bad = sum(1 for found in problems.values() if found)
    if bad:
        results = {fleet.sessions[rank].name: "; ".join(found) or "ok" for rank, found in sorted(problems.items())}
        raise HostsError(f"{what}: {bad} of {len(results)}", results, hint="zlaunch doctor ssh shows more")


def python_of(job: JobSpec, said: Mapping[int, Json], fleet: Fleet) -> str:
    """One path of the interpreter for all hosts: the plan names one."""
    found = {facts_["python"] for facts_ in said.values()}
    if len(found) == 1:
        return str(found.pop())
    if not job.ssh.python.startswith("~"):
        return job.ssh.python
    results = {fleet.sessions[rank].name: facts_["python"] for rank, facts_ in said.items()}
    raise HostsError(f"{job.ssh.python} is another path on each host", results, hint="use one absolute path everywhere")


def target(job: JobSpec, found: Survey, paths: Mapping[str, str]) -> Target:
    """The facts that planning needs."""
    gpus = [gpus_of(facts_)[slot] for rank, facts_ in found.facts.items() for slot in _gpu_slots(found, rank)]
    capabilities = [gpu.compute_capability for gpu in gpus if gpu.compute_capability]
    return Target(
        backend="ssh",
        device=found.device,
        hosts=tuple((name, len(slots)) for name, slots in zip(found.names, found.slots, strict=True)),
        python=found.python,
        master_addr=found.master_addr,
        master_port=found.ports[0],
        control_port=found.ports[1],
        token=facts.new_token(),
        gpu_memory_bytes=min((gpu.memory_bytes for gpu in gpus), default=None),
        gpu_name=gpus[0].name if gpus else None,
        compute_capability=min(capabilities, default=None),
        paths=dict(paths),
    )


def _gpu_slots(found: Survey, rank: int) -> list[int]:
    return found.slots[rank] if found.device == "cuda" else []

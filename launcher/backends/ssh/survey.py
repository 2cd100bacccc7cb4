"""Survey the hosts of a job before anything starts: what they are like, and whether they can run it.

requested_hosts -> connect -> hello -> problems, images -> shared directories, ports, addresses -> Survey -> Target
"""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.backends import container_choice
from launcher.backends.ssh.host_request import HostRequest, fleet_of, requested_hosts
from launcher.backends.ssh.image_check import ask_images, image_problems
from launcher.backends.ssh.rendezvous import choose_address, open_rendezvous, probe_peers
from launcher.backends.ssh.requirements import (
    REPORTED,
    device_of,
    find_problems,
    found_on,
    gpus_of,
    majority,
    shared_gpus,
    shared_machines,
    uses_environment,
)
from launcher.errors import HostsError, TargetError
from launcher.job.spec import JobSpec
from launcher.machine import facts as machine_facts
from launcher.machine import measured_networks
from launcher.machine.forwarded import forwarded
from launcher.plan.types import Target
from launcher.remote.fleet import Fleet
from launcher.remote.session import Json, Session
from train.config import Device

HELLO_TIMEOUT = 120.0
"""Seconds; a driver that hangs is named within half of them."""


@dataclass
class Survey:
    """What the hosts answered. The index is the node rank everywhere."""

    fleet: Fleet
    facts: dict[int, Json]
    slots: list[list[int]]
    device: Device
    leaders: list[int]
    """For each host the first host that sees the same working directory; itself if it shares it with none before."""
    python: str
    ports: tuple[int, int]
    master_addr: str
    notes: tuple[str, ...] = ()
    visible_by_job: bool = False
    """The job itself sets CUDA_VISIBLE_DEVICES."""

    @property
    def names(self) -> list[str]:
        return [session.name for session in self.fleet.sessions]

    def workdir(self, rank: int) -> str:
        return str(self.facts[rank]["workdir"])

    def environment(self, rank: int) -> dict[str, str]:
        """Return variables for this host's agent only: which GPUs to use, unless it uses all that its ranks see.

        The job's own CUDA_VISIBLE_DEVICES comes this way as well, because slots count within it.
        """
        seen = gpus_of(self.facts[rank])
        if self.device == "cpu" or (self.slots[rank] == list(range(len(seen))) and not self.visible_by_job):
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(seen[slot].entry for slot in self.slots[rank])}


@dataclass
class Greetings:
    """The answers to `hello`, by node rank."""

    facts: dict[int, Json]
    skew: dict[int, float]
    """Seconds by which a host's clock is ahead of the median of all clocks, the launcher's included."""
    failures: dict[int, TargetError]


def survey(job: JobSpec, *, living: bool = False) -> Survey:
    """Connect to the job's hosts and learn all that planning needs. `living`: leave out hosts that cannot be reached.

    Raises UsageError, and HostsError with a line per host.
    """
    request = requested_hosts(job.ssh)
    container_choice.runtime_of(job, "ssh")  # refuse an image that no host could run before any host is asked
    fleet = fleet_of(request.names, job.ssh)
    try:
        left_out: Mapping[str, TargetError] = {}
        if living:
            left_out = fleet.open_living()
        else:
            fleet.open()
        found = _survey(job, request.without(left_out), fleet)
        notes = [
            f"{host} cannot be reached, and the run goes on without it: {error}" for host, error in left_out.items()
        ]
        return replace(found, notes=(*notes, *found.notes))
    except BaseException:
        fleet.close()
        raise


def _survey(job: JobSpec, request: HostRequest, fleet: Fleet) -> Survey:
    token, ranks = secrets.token_hex(8), range(len(fleet))
    # A program or an image needs no packages on the host, and looking for them is most of a host's work here.
    greetings = greet(fleet, job, token, REPORTED if uses_environment(job) else (), ranks)
    _refuse("cannot ask the hosts", fleet, {rank: [str(error)] for rank, error in greetings.failures.items()})
    facts, skew = greetings.facts, greetings.skew
    _refuse("cannot count the GPUs", fleet, {rank: _census_problem(facts[rank]) for rank in ranks})
    device = device_of(job, {fleet.sessions[rank].name: len(gpus_of(facts[rank])) for rank in ranks})
    slots = slots_by_rank(request, fleet, facts, device)
    usual = majority(facts.values())
    problems = {
        rank: list(find_problems(job, facts[rank], slots[rank], device, skew[rank], usual).values()) for rank in ranks
    }
    names = [session.name for session in fleet.sessions]
    for rank, problem in (shared_gpus(names, facts, slots) if device == "cuda" else {}).items():
        problems[rank].append(problem)
    _refuse("the hosts are not ready", fleet, problems)
    _refuse("the hosts cannot run the image", fleet, image_problems(ask_images(fleet, job, device, ranks)))
    rendezvous = fleet.on_all_hosts(
        "cannot listen on the first host",
        lambda rank, session: open_rendezvous(session, rank, facts, job.ssh.master_addr),
        [0],
    )[0]
    answers = probe_peers(fleet, facts, token, rendezvous)
    return Survey(
        fleet,
        facts,
        slots,
        device,
        leaders=[min(answers[rank]["seen"], default=rank) for rank in ranks],
        python=_common_python(job, facts, fleet),
        ports=rendezvous.ports,
        master_addr=choose_address(fleet, rendezvous, answers, job.ssh.master_addr),
        notes=(*(gpu_notes(fleet, facts) if device == "cuda" else ()), *shared_machines(names, facts)),
        visible_by_job="CUDA_VISIBLE_DEVICES" in job.env,
    )


def _census_problem(facts: Json) -> list[str]:
    error = found_on(facts).error
    return [f"{error}; repair the driver there, or use --device cpu"] if error else []


def gpu_notes(fleet: Fleet, facts: Mapping[int, Json]) -> tuple[str, ...]:
    """Return what the user should know of the hosts' GPUs, each sentence with the hosts that it is about."""
    hosts: dict[str, list[str]] = {}
    for rank, host in facts.items():
        for note in found_on(host).notes:
            hosts.setdefault(note, []).append(fleet.sessions[rank].name)
    return tuple(f"{', '.join(names)}: {note}" for note, names in hosts.items())


def slots_by_rank(request: HostRequest, fleet: Fleet, facts: Mapping[int, Json], device: Device) -> list[list[int]]:
    """Return the slots of each host; one per GPU, or one per host on the CPU, where the job gives no number."""
    counts = {fleet.sessions[rank].name: len(gpus_of(host)) if device == "cuda" else 1 for rank, host in facts.items()}
    by_name = request.slots(counts)
    return [by_name.get(session.name, []) for session in fleet.sessions]


def greet(fleet: Fleet, job: JobSpec, token: str, packages: Sequence[str], ranks: Iterable[int]) -> Greetings:
    """Ask hosts for their facts, and how far their clocks differ."""
    offsets: dict[int, float] = {}
    paths = [job.model.path] if job.model.path.startswith(("/", "~")) and not job.program else []

    def hello(rank: int, session: Session) -> Json:
        before = time.time()
        answer = session.call(
            "hello", workdir=job.ssh.workdir, token=token, index=rank, packages=list(packages),
            gpus=job.device != "cpu", paths=paths, env=job.env, timeout=HELLO_TIMEOUT,
        )  # fmt: skip
        offsets[rank] = answer["time"] - (before + time.time()) / 2
        return answer

    facts, failures = fleet.for_each_host(hello, ranks)
    median = statistics.median_low([0.0, *offsets.values()])
    return Greetings(facts, {rank: offset - median for rank, offset in offsets.items()}, failures)


def _refuse(what: str, fleet: Fleet, problems: Mapping[int, Sequence[str]]) -> None:
    """Raise HostsError with a line per host if any host has a problem."""
    bad = sum(1 for found in problems.values() if found)
    if bad:
        results = {fleet.sessions[rank].name: "; ".join(found) or "ok" for rank, found in sorted(problems.items())}
        raise HostsError(f"{what}: {bad} of {len(results)}", results, hint="zlaunch doctor ssh shows more")


def _common_python(job: JobSpec, facts: Mapping[int, Json], fleet: Fleet) -> str:
    """Return one path of the interpreter for all hosts, because the plan names only one. Raises HostsError."""
    paths = {host["python"] for host in facts.values()}
    if len(paths) == 1:
        return str(paths.pop())
    if not job.ssh.python.startswith("~"):
        return job.ssh.python
    results = {fleet.sessions[rank].name: host["python"] for rank, host in facts.items()}
    raise HostsError(f"{job.ssh.python} is another path on each host", results, hint="use one absolute path everywhere")


def target(job: JobSpec, found: Survey, paths: Mapping[str, str]) -> Target:
    """Return the facts that planning needs. `paths`: {input file here: its name in the run directory}."""
    used = found.slots if found.device == "cuda" else []
    gpus = [gpus_of(found.facts[rank])[slot] for rank, slots in enumerate(used) for slot in slots]
    capabilities = [gpu.compute_capability for gpu in gpus if gpu.compute_capability]
    return Target(
        backend="ssh",
        device=found.device,
        hosts=tuple((name, len(slots)) for name, slots in zip(found.names, found.slots, strict=True)),
        python=found.python,
        master_addr=found.master_addr,
        master_port=found.ports[0],
        control_port=found.ports[1],
        token=machine_facts.new_token(),
        gpu_memory_bytes=min((gpu.memory_bytes for gpu in gpus), default=None),
        gpu_name=gpus[0].name if gpus else None,
        compute_capability=min(capabilities, default=None),
        network=measured_networks.known(found.names),
        paths=dict(paths),
        notes=found.notes,
        forwarded=forwarded(os.environ),
    )

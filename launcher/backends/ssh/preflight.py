"""Preflight checks of hosts: ask each one what it is like, and whether it reaches the others."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from launcher.backends import container_choice
from launcher.backends.checklist import Row
from launcher.backends.ssh import survey
from launcher.backends.ssh.host_request import fleet_of, requested_hosts
from launcher.backends.ssh.image_check import ask_images
from launcher.backends.ssh.preflight_table import PACKAGES, Inspection, make_table
from launcher.backends.ssh.rendezvous import REACH_SECONDS, REACH_TIMEOUT, Rendezvous, open_rendezvous, require_count
from launcher.backends.ssh.requirements import gpus_of, most_common
from launcher.job.inputs import Input
from launcher.job.spec import JobSpec
from launcher.remote.fleet import Fleet
from launcher.remote.session import Json, Session

ALL_PAIRS = 32
"""Up to so many hosts every host tries to reach every other. Beyond it all try the first, which the run needs."""
HASH_TIMEOUT = 600
"""Seconds for a host to hash the input files that it has."""


def examine(job: JobSpec, inputs: Sequence[Input]) -> list[Row]:
    """Ask all hosts of the job, in parallel; return a row per host. Raises UsageError."""
    request = requested_hosts(job.ssh)
    container_choice.runtime_of(job, "ssh")  # refuse an image that no host could run before any host is asked
    fleet = fleet_of(request.names, job.ssh)
    try:
        return make_table(job, request, inspect(job, fleet, inputs), inputs)
    finally:
        fleet.close()


def inspect(job: JobSpec, fleet: Fleet, inputs: Sequence[Input]) -> Inspection:
    """Ask every host all that the table shows. A host that fails does not hide the others."""
    opened, closed = fleet.for_each_host(lambda _, session: session.open())
    token = secrets.token_hex(8)
    greetings = survey.greet(fleet, job, token, PACKAGES, sorted(opened))
    facts = greetings.facts
    up = sorted(facts)
    device = "cuda" if job.device != "cpu" and any(gpus_of(host) for host in facts.values()) else "cpu"
    return Inspection(
        names=[session.name for session in fleet.sessions],
        closed={rank: str(error) for rank, error in {**closed, **greetings.failures}.items()},
        facts=facts,
        login={rank: fleet.sessions[rank].login_seconds for rank in up},
        skew=greetings.skew,
        sharing=find_shared_directories(fleet, facts, token),
        unreached=connect_all(fleet, facts, job.ssh.master_addr),
        images=ask_images(fleet, job, device, up),
        present=find_present_inputs(fleet, facts, inputs),
    )


def find_shared_directories(fleet: Fleet, facts: Mapping[int, Json], token: str) -> dict[int, list[int]]:
    """Return {host: hosts whose marks it sees in its working directory}, and remove the marks."""

    def read_marks(rank: int, session: Session, *, clean: bool) -> list[int]:
        answer = session.call("shared_dir_marks", workdir=facts[rank]["workdir"], token=token, clean=clean)
        ranks: list[int] = answer["seen"]
        return ranks

    found, _ = fleet.for_each_host(lambda rank, session: read_marks(rank, session, clean=False), sorted(facts))
    fleet.for_each_host(lambda rank, session: read_marks(rank, session, clean=True), sorted(facts))
    return found


def find_present_inputs(fleet: Fleet, facts: Mapping[int, Json], inputs: Sequence[Input]) -> dict[int, set[str]]:
    """Return {host: hashes of the input files that it has}."""
    items = [file.item for file in inputs]
    answers, _ = fleet.for_each_host(
        lambda rank, session: session.call(
            "find_inputs", inputs=items, workdir=facts[rank]["workdir"], timeout=HASH_TIMEOUT
        ),
        sorted(facts) if items else [],
    )
    return {rank: set(answer["found"]) for rank, answer in answers.items()}


def connect_all(fleet: Fleet, facts: Mapping[int, Json], master_addr: str | None) -> dict[int, list[int]]:
    """Return {host: hosts it cannot connect to}. Hosts listen for a moment, at all addresses that a run would try."""
    ranks = sorted(facts)
    servers = ranks if len(ranks) <= ALL_PAIRS else ranks[:1]
    listening, failed = fleet.for_each_host(
        lambda rank, session: open_rendezvous(session, rank, facts, None if rank else master_addr), servers
    )

    def reach(rank: int, session: Session) -> dict[int, set[str]]:
        return _reached(session, {other: rendezvous for other, rendezvous in listening.items() if other != rank})

    answers, _ = fleet.for_each_host(reach, ranks)
    fleet.for_each_host(lambda _, session: session.call("unlisten"), servers)
    addresses = {rank: rendezvous.addresses for rank, rendezvous in listening.items()}
    return unreached(ranks, addresses, set(failed), answers)


def _reached(session: Session, listening: Mapping[int, Rendezvous]) -> dict[int, set[str]]:
    """Return {host: its addresses at which this session's host got an answer}."""
    targets = [target for rendezvous in listening.values() for target in rendezvous.targets]
    answer = session.call("reach", targets=targets, seconds=REACH_SECONDS, timeout=REACH_TIMEOUT)
    require_count(answer["reached"], targets)
    results = iter(answer["reached"])
    return {
        rank: {address for address in rendezvous.addresses if next(results)} for rank, rendezvous in listening.items()
    }


def unreached(
    ranks: Sequence[int],
    addresses: Mapping[int, Sequence[str]],
    failed: set[int],
    reached: Mapping[int, Mapping[int, set[str]]],
) -> dict[int, list[int]]:
    """Return {host: hosts it cannot connect to}. Pure.

    `reached`: per host the addresses at which each other host answered. Between two hosts any address will do. The
    first host of a run has one address for all others, so one must do for all.
    """
    answered = [found.get(0, set()) for rank, found in reached.items() if rank]
    master = most_common(address for address in addresses.get(0, ()) for found in answered if address in found)

    def connects(rank: int, other: int) -> bool:
        if rank not in reached or other in failed:
            return False
        found = reached[rank].get(other, set())
        return master in found if other == 0 else bool(found)

    others = (*addresses, *sorted(failed))
    return {rank: [other for other in others if other != rank and not connects(rank, other)] for rank in ranks}

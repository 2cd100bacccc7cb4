"""Find the address of the first host that every other host reaches."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.errors import HostsError
from launcher.remote.fleet import Fleet
from launcher.remote.session import AnswerRefused, Json, Session

REACH_SECONDS = 3.0
REACH_TIMEOUT = 30


@dataclass(frozen=True)
class Rendezvous:
    """A host that listens for the others: two free ports, and the addresses at which it may answer on the first."""

    ports: tuple[int, int]
    addresses: tuple[str, ...]
    nonce: str

    @property
    def targets(self) -> list[list[str | int]]:
        """What other hosts try, one entry per address; see `reach` in launcher/node/farend/network.py."""
        return [[address, self.ports[0], self.nonce] for address in self.addresses]


def open_rendezvous(session: Session, rank: int, facts: Mapping[int, Json], requested: str | None) -> Rendezvous:
    """Have a host listen for the others. `requested`: the one address that the user wants. Raises HostError."""
    nonce = secrets.token_hex(16)
    peers = sorted({host["address"] for other, host in facts.items() if other != rank and host["address"]})
    answer = session.call("listen", nonce=nonce, peers=peers)
    addresses = (requested,) if requested else tuple(answer["addresses"])
    return Rendezvous((answer["ports"][0], answer["ports"][1]), addresses, nonce)


def probe_peers(fleet: Fleet, facts: Mapping[int, Json], token: str, rendezvous: Rendezvous) -> dict[int, Json]:
    """Return what each host sees of the others: marks in its working directory, and the first host's answers."""

    def probe(rank: int, session: Session) -> Json:
        targets = rendezvous.targets if rank else []
        answer = session.call(
            "probe_peers", workdir=facts[rank]["workdir"], token=token, targets=targets, seconds=REACH_SECONDS,
            timeout=REACH_TIMEOUT,
        )  # fmt: skip
        require_count(answer["reached"], targets)
        if not set(answer["seen"]) <= set(range(len(fleet))):
            raise AnswerRefused("it sees marks of hosts that nobody asked for in its working directory")
        return answer

    answers = fleet.on_all_hosts("cannot ask the hosts about each other", probe)
    fleet.on_all_hosts("cannot end listening on the first host", lambda _, session: session.call("unlisten"), [0])
    return answers


def require_count(reached: Sequence[bool], targets: Sequence[object]) -> None:
    """Raise HostError unless a host's answer has one result per target."""
    if len(reached) != len(targets):
        raise AnswerRefused(f"it tried {len(targets)} addresses and has {len(reached)} results")


def choose_address(fleet: Fleet, rendezvous: Rendezvous, answers: Mapping[int, Json], requested: str | None) -> str:
    """Return the first host's address at which every other host really got an answer. Raises HostsError."""
    others = range(1, len(fleet))
    if not others:
        return requested or "127.0.0.1"
    reached = {
        rank: [address for address, ok in zip(rendezvous.addresses, answers[rank]["reached"], strict=True) if ok]
        for rank in others
    }
    for address in rendezvous.addresses:
        if all(address in reached[rank] for rank in others):
            return address
    name = fleet.sessions[0].name
    results = {
        fleet.sessions[rank].name: f"reaches {', '.join(reached[rank]) or 'none'} of {', '.join(rendezvous.addresses)}"
        for rank in others
    }
    hint = f"open TCP ports 10000-29999 to {name}, or name an address the others reach with --master-addr"
    raise HostsError(
        f"{name} has no address at which all others reach port {rendezvous.ports[0]}",
        results,
        hint=hint,
        code="ZL-SSH-08",
    )

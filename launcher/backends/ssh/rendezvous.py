"""Find the address of the first host that every other host can reach."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import HostsError
from launcher.remote.fleet import Fleet, Json, Session

REACH_SECONDS = 3.0


@dataclass(frozen=True)
class Door:
    """Where a host can be reached, perhaps: two ports free there, and what answers on the first of them."""

    ports: tuple[int, int]
    addresses: tuple[str, ...]
    nonce: str

    @property
    def targets(self) -> list[list[str | int]]:
        """What other hosts try, one for each address; see reach in launcher/node/farend/network.py."""
        return [[address, self.ports[0], self.nonce] for address in self.addresses]


def open_door(session: Session, rank: int, said: Mapping[int, Json], asked: str | None) -> Door:
    """Have a host listen for the others; `asked` is the one address that the user wants. Raises HostError."""
    nonce = secrets.token_hex(16)
    peers = sorted({facts_["address"] for other, facts_ in said.items() if other != rank and facts_["address"]})
    opened = session.call("listen", nonce=nonce, peers=peers)
    return Door((opened["ports"][0], opened["ports"][1]), (asked,) if asked else tuple(opened["addresses"]), nonce)


def meet(fleet: Fleet, said: Mapping[int, Json], token: str, door: Door) -> dict[int, Json]:
    """What each host sees of the others: their marks in its working directory, and the first host through its door."""
    met = fleet.all(
        "the hosts cannot be asked about each other",
        lambda rank, session: session.call(
            "probe_peers", workdir=said[rank]["workdir"], token=token, targets=door.targets if rank else [],
            seconds=REACH_SECONDS, timeout=30,
        ),
    )  # fmt: skip
    fleet.sessions[0].call("unlisten")
    return met


def address_for_all(fleet: Fleet, door: Door, met: Mapping[int, Json], asked: str | None) -> str:
    """The first host's address at which every other host really got an answer. Raises HostsError."""
    others = range(1, len(fleet))
    if not others:
        return asked or "127.0.0.1"
    reached = {
        rank: [address for address, ok in zip(door.addresses, met[rank]["reached"], strict=True) if ok]
        for rank in others
    }
    for address in door.addresses:
        if all(address in reached[rank] for rank in others):
            return address
    name = fleet.sessions[0].name
    results = {
        fleet.sessions[rank].name: f"reaches {', '.join(reached[rank]) or 'none'} of {', '.join(door.addresses)}"
        for rank in others
    }
    hint = f"open TCP ports 10000-29999 to {name}, or name an address the others reach with --master-addr"
    raise HostsError(f"{name} has no address at which all others reach port {door.ports[0]}", results, hint=hint)

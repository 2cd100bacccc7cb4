"""Parse addresses of hosts as people write them: [user@]host[:port]."""

from __future__ import annotations

import re
from dataclasses import dataclass

from launcher.errors import HostfileError


@dataclass(frozen=True)
class Address:
    """A host by the name the user gave; None where the user's ssh configuration decides."""

    host: str
    user: str | None = None
    port: int | None = None


def parse_address(name: str, *, where: str = "--hosts") -> Address:
    """Parse `[user@]host[:port]`. An IPv6 address with a port needs brackets. Raises HostfileError."""
    user, at, rest = name.rpartition("@")
    bracketed = re.fullmatch(r"\[([^\[\]]+)\](?::(.*))?", rest)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    else:
        host, port = rest, None
    if not host or re.search(r"[\s/\\'\"$;&|<>`]", name) or host.startswith("-") or (at and not user):
        raise HostfileError(f"{where}: {name!r} is not [user@]host[:port]")
    if re.search(r"[\[\]]", host):
        raise HostfileError(
            f"{where}: {name!r}: expected numbers in the brackets",
            hint="--hosts expands node[1-4] and node[01-03,7]; a hostfile has one line per host",
        )
    if port is not None and not (port.isascii() and port.isdigit() and len(port) < 9 and 0 < int(port) < 65536):
        raise HostfileError(f"{where}: {name!r}: {port!r} is not a port; accepted: 1 to 65535")
    return Address(host, user or None, int(port) if port else None)

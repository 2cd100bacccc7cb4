"""Parse hosts and slots: DeepSpeed's hostfile and its --include/--exclude, and `--hosts a,node[1-4],user@c:2222`.

The grammar is DeepSpeed's, to the letter (deepspeed.launcher.runner._parse_hostfile and parse_resource_filter of
0.19.8). Each text is accepted with the same result or rejected, here with file, line and reason. Only an absent file
differs: DeepSpeed then trains on this machine without a word; here it is an error.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from launcher.errors import HostfileError
from launcher.remote.address import parse_address

Slots = dict[str, list[int]]
"""{host: slots (GPU indices) to use there}, in node order."""

_ENTRY = re.compile(r"^(\S+)\s+slots=(\d+)")
_HINT = "one host per line, for example: worker-0 slots=8"
_MOST_DIGITS = 4000
"""Of a number. Python converts 4,300 and raises ValueError for more, as DeepSpeed then does."""


def load(path: Path) -> dict[str, int]:
    """Read {host: number of slots} from a hostfile, in file order. Raises HostfileError."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors begin a file with a BOM
    except OSError as error:
        reason = "no such hostfile" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise HostfileError(f"{path}: {reason}", hint=_HINT) from error
    except UnicodeDecodeError as error:
        raise HostfileError(f"{path}: not a text file: {error}", hint=_HINT) from error
    return parse(text, where=str(path))


def parse(text: str, *, where: str = "hostfile") -> dict[str, int]:
    """Parse {host: number of slots}. Raises HostfileError naming `where`, the line and the reason."""
    pool: dict[str, int] = {}
    lines_of: dict[str, int] = {}
    for number, raw in enumerate(io.StringIO(text, newline=None), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _ENTRY.search(line)
        if match is None:
            raise HostfileError(f"{where}: line {number}: {_why_bad(line)}: {line!r}", hint=_HINT)
        host = match[1]
        if len(match[2]) > _MOST_DIGITS:
            raise HostfileError(f"{where}: line {number}: slots= of {host} has {len(match[2])} digits", hint=_HINT)
        if host in pool:
            raise HostfileError(
                f"{where}: line {number}: {host} is already in line {lines_of[host]}",
                hint="one line per host; its slots= is the sum",
            )
        pool[host], lines_of[host] = int(match[2]), number
    if not pool:
        raise HostfileError(f"{where}: no host in it", hint=_HINT)
    return pool


def _why_bad(line: str) -> str:
    if "slots" not in line:
        return "no slots=N after the host"
    if re.search(r"slots\s+=|slots=\s", line):
        return "no space is allowed around the = of slots=N"
    if re.match(r"slots=", line):
        return "no host before slots=N"
    if re.match(r"\S+\s+slots=\D", line):
        return "slots= needs a number"
    return "expected a host, white space and slots=N"


def parse_hosts(hosts: str | Sequence[str], *, where: str = "--hosts") -> tuple[str, ...]:
    """Parse `a,user@c:2222,node[01-03,7]`, or a list of such texts, into names in order. Raises HostfileError."""
    # A comma inside brackets belongs to a range.
    texts = [
        part for text in ([hosts] if isinstance(hosts, str) else hosts) for part in re.split(r",(?![^\[]*\])", text)
    ]
    names: dict[str, None] = {}
    for position, text in enumerate(texts, start=1):
        if not text.strip():
            raise HostfileError(f"{where}: entry {position} is empty", hint="for example --hosts node1,user@node2:2222")
        for name in expand_ranges(text.strip(), where=where):
            parse_address(name, where=where)
            if name in names:
                raise HostfileError(
                    f"{where}: {name} is there twice", hint="name each host once; slots set how many ranks it gets"
                )
            names[name] = None
    return tuple(names)


_RANGES = re.compile(r"\[(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\]")
_MOST_HOSTS = 65_536
_MOST_SLOTS = 65_536


def expand_ranges(text: str, *, where: str = "--hosts") -> list[str]:
    """Expand `rack[1-2]n[01-03,7]` as Slurm's `scontrol show hostnames` does: the last brackets vary fastest.

    A range has as many digits as its first number. Brackets with a colon are an IPv6 address. Raises HostfileError.
    """
    found = _RANGES.search(text)
    if found is None:
        return [text]
    numbers: list[str] = []
    for part in found[1].split(","):
        first, _, last = part.partition("-")
        low, high = (int(word) if len(word) <= _MOST_DIGITS else -1 for word in (first, last or first))
        if not 0 <= low <= high < low + _MOST_HOSTS:
            raise HostfileError(f"{where}: {text!r}: {part} is not a range of numbers", hint="for example node[01-16]")
        numbers += [str(number).zfill(len(first)) for number in range(low, high + 1)]
    rest = expand_ranges(text[found.end() :], where=where)
    if len(numbers) * len(rest) > _MOST_HOSTS:
        raise HostfileError(f"{where}: {text!r} stands for {len(numbers) * len(rest)} hosts")
    return [f"{text[: found.start()]}{number}{end}" for number in numbers for end in rest]


def select(pool: Mapping[str, int], include: str = "", exclude: str = "") -> Slots:
    """Return the slots of `pool` that --include or --exclude leaves, by host, in the order of `pool`.

    The syntax is NODE[:SLOT,SLOT...][@NODE...]: `worker-0@worker-1:0,2`. Raises HostfileError.
    """
    everything = {host: list(range(_accepted(slots, host))) for host, slots in pool.items()}
    if include and exclude:
        raise HostfileError("--include and --exclude do not go together", hint="give one of them", code="ZL-HOST-02")
    if not include and not exclude:
        return everything
    option = "--include" if include else "--exclude"
    filtered = _parse_filter(include or exclude, option)
    for host, slots in filtered.items():
        if host not in everything:
            raise HostfileError(f"{option}: no host {host!r}; known: {', '.join(everything)}", code="ZL-HOST-02")
        for slot in slots:
            if slot not in everything[host]:
                raise HostfileError(
                    f"{option}: {host} has no slot {slot}; it has {pool[host]}, counted from 0", code="ZL-HOST-02"
                )
    if include:
        chosen = {host: slots or everything[host] for host, slots in filtered.items()}
    else:
        chosen = {host: _without(slots, filtered.get(host)) for host, slots in everything.items()}
    return {host: chosen[host] for host in everything if chosen.get(host)}


def _accepted(slots: int, host: str) -> int:
    if slots > _MOST_SLOTS:
        raise HostfileError(f"{host} has {slots} slots; accepted: at most {_MOST_SLOTS:,}", hint=_HINT)
    return slots


def _without(slots: list[int], removed: list[int] | None) -> list[int]:
    """Return what an exclusion leaves of a host: all if it does not name the host, nothing if it names no slots."""
    if removed is None:
        return slots
    return [slot for slot in slots if slot not in removed] if removed else []


def _parse_filter(text: str, option: str) -> Slots:
    """Parse {host: slots named for it}; an empty list means all of them."""
    found: dict[str, set[int]] = {}
    for node in text.split("@"):
        host, *rest = node.split(":")
        if len(rest) > 1:
            raise HostfileError(
                f"{option}: {node!r} has more than one colon", hint="NODE[:SLOT,SLOT...][@NODE...]", code="ZL-HOST-02"
            )
        found.setdefault(host, set()).update(_numbers(rest[0], node, option) if rest else ())
    return {host: sorted(slots) for host, slots in found.items()}


def _numbers(text: str, node: str, option: str) -> Iterable[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        hint = "NODE[:SLOT,SLOT...][@NODE...], for example worker-0@worker-1:0,2"
        raise HostfileError(
            f"{option}: {node!r}: slots must be numbers separated by commas", hint=hint, code="ZL-HOST-02"
        ) from error

"""Find ranks that hang: signs of progress on each node, and on node 0 which rank differs from the others.

The ranks of a training wait for each other in every step, so a rank that hangs stops all of them. A run hangs when
every rank that still runs has been without a sign for longer than it announced: a rank that saves for an hour has
announced that, and the others wait for it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from .files import Json

WATCH_FD = "ZLAUNCH_WATCH_FD"
SIGN_BYTES = 256
"""As in train/rundir/heartbeat.py."""
START_LIMIT = 3600.0
"""Seconds until a rank's own first sign: its interpreter may start from a slow file system."""
SOME_BYTES = 1 << 16
"""Bytes read or written that count as progress."""
LONGEST_POLL = 5.0
COLLECT_SECONDS = 20.0
"""How long node 0 waits for the stacks of the other nodes."""
MOST_GROUPS = 8
MOST_FRAMES = 12
MOST_CHARS = 160


class Pulse:
    """The signs of one rank, as its agent sees them."""

    def __init__(self, pid: int, fd: int, now: float) -> None:
        self.pid, self.fd, self.seen, self.bytes = pid, fd, now, 0
        self.sign: Json = {"count": 0, "doing": "start of the interpreter", "limit": START_LIMIT, "io": True}

    def look(self, now: float) -> None:
        """Take note of a new sign, or of bytes that the rank has read or written since."""
        sign = self._read()
        if sign is not None and sign["count"] != self.sign["count"]:
            self.sign, self.seen = sign, now
        if self.sign["io"]:
            count = bytes_moved(self.pid)
            if count - self.bytes >= SOME_BYTES:
                self.bytes, self.seen = count, now

    def _read(self) -> Optional[Json]:
        """The last sign; None: none yet, or it is being written."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            sign = json.loads(os.pread(self.fd, SIGN_BYTES, 0).decode("utf-8", "replace").strip("\0 "))
            return {"count": int(sign["count"]), "doing": shown(sign["doing"]), "limit": float(sign["limit"]),
                    "io": bool(sign["io"])}  # fmt: skip
        return None

    def is_quiet(self, now: float) -> bool:
        return now - self.seen > float(self.sign["limit"])


class Pulses:
    """The signs of the ranks of one node."""

    def __init__(self) -> None:
        self.of_rank: Dict[int, Pulse] = {}
        self.looked: Optional[float] = None

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        shortest = min([float(pulse.sign["limit"]) for pulse in self.of_rank.values()], default=START_LIMIT)
        return max(0.2, min(LONGEST_POLL, shortest / 5))

    def all_quiet(self, living: List[int], now: float) -> bool:
        """Whether none of the living ranks has given the sign that it announced; False without ranks."""
        if self.looked is not None and now - self.looked > 2 * LONGEST_POLL:
            for pulse in self.of_rank.values():  # this process was stopped, so the ranks may have been stopped with it
                pulse.seen += now - self.looked
        self.looked = now
        pulses = [self.of_rank[rank] for rank in living if rank in self.of_rank]
        for pulse in pulses:
            pulse.look(now)
        return bool(pulses) and len(pulses) == len(living) and all(pulse.is_quiet(now) for pulse in pulses)

    def clear(self) -> None:
        for pulse in self.of_rank.values():
            os.close(pulse.fd)
        self.of_rank, self.looked = {}, None


def bytes_moved(pid: int) -> int:
    """Bytes that a process has read and written so far; 0 if the kernel does not count them."""
    with suppress(OSError, ValueError, IndexError), open("/proc/%d/io" % pid) as file:
        lines = [line.split() for line in file]
        return sum(int(words[1]) for words in lines if words[0] in ("rchar:", "wchar:", "read_bytes:"))
    return 0


def shown(text: Any, most: int = MOST_CHARS) -> str:
    """Text from a rank or another node as one line without control characters."""
    return "".join(char if char.isprintable() else "?" for char in str(text)[:most])


# node 0: what the stacks of all ranks say

WAITING = ("(torch/distributed/", "(train/dist.py:", "(train/hub/cachedir.py:", "(deepspeed/comm/")
"""Files in which a rank waits for the others, in a collective or for a lock, as `stacks.short` writes them."""


def row_of(value: Any) -> Optional[Json]:
    """A node's report about one rank, checked; None: it is not one."""
    with suppress(KeyError, TypeError, ValueError):
        frames = [shown(frame) for frame in value["frames"][:MOST_FRAMES]]
        texts = {name: shown(value[name]) for name in ("state", "doing", "host")}
        return {"rank": int(value["rank"]), "frames": frames, "quiet": float(value["quiet"]), **texts}
    return None


def waits(row: Json) -> bool:
    """Whether a rank waits for others, by the innermost calls of its stack."""
    return row["state"] == "" and any(part in frame for frame in row["frames"][:8] for part in WAITING)


def key_of(row: Json) -> Tuple[Any, ...]:
    """What ranks that hang at one place have in common: state and calls, without the numbers of lines."""
    return row["state"], tuple(frame.rpartition(":")[0] for frame in row["frames"])


def group_stacks(rows: List[Json]) -> List[Json]:
    """The ranks by the place where they are, the largest group first: `ranks`, `hosts`, `state`, `doing`, `quiet`,
    `frames` (innermost first), and `odd`, whether the others seem to wait for this one.

    Odd are the ranks that are not in a collective while others are; else those at another place than most.
    """
    groups: Dict[Tuple[Any, ...], List[Json]] = {}
    for row in sorted(rows, key=lambda row: int(row["rank"])):
        groups.setdefault(key_of(row), []).append(row)
    ordered = sorted(groups.values(), key=lambda group: (-len(group), group[0]["rank"]))
    waiting = [waits(group[0]) for group in ordered]
    if any(waiting) and not all(waiting):
        odd = [not waits_here for waits_here in waiting]
    else:
        largest = [len(group) for group in ordered]
        odd = [len(group) < largest[0] for group in ordered]
    # the odd ones are shown even if there are many groups
    chosen = sorted(range(len(ordered)), key=lambda place: not odd[place])[:MOST_GROUPS]
    return [
        {
            "ranks": [row["rank"] for row in ordered[place]],
            "hosts": sorted({row["host"] for row in ordered[place]})[:MOST_GROUPS],
            **{name: ordered[place][0][name] for name in ("state", "doing", "frames")},
            "quiet": round(max(row["quiet"] for row in ordered[place]), 1),
            "odd": odd[place],
        }
        for place in sorted(chosen)
    ]


def describe(groups: List[Json]) -> str:
    """One sentence for people."""
    odd = [group for group in groups if group["odd"]]
    quiet = max([group["quiet"] for group in groups], default=0.0)
    text = "the run hangs: no rank has made progress for %.0f s" % quiet
    if not odd:
        return text + ("; all ranks are at the same place (%s)" % where(groups[0]) if len(groups) == 1 else "")
    return text + "; " + ", ".join("%s differs: %s" % (name_of(group), where(group)) for group in odd[:3])


def name_of(group: Json) -> str:
    ranks = group["ranks"]
    listed = ", ".join(map(str, ranks[:6])) + (", ..." if len(ranks) > 6 else "")
    return ("rank %s on %s" if len(ranks) == 1 else "ranks %s on %s") % (listed, ", ".join(group["hosts"][:3]))


def where(group: Json) -> str:
    place = group["state"] or (group["frames"][0] if group["frames"] else "place unknown")
    return "%s, %s" % (group["doing"], place)

"""What comes from a hub, once a node and start: one rank asks, the others of its node read what it was told.

So nothing is fetched twice, a start of many ranks sends the hub the requests of one, and all of them see the same
revision though the hub may get a new one meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from train.rundir import write_json

FRESH_SECONDS = 3600.0
"""Answers that are older are asked for again: what looks like this start may be a later one of the same shell."""

Paths = list[str]
_told: dict[str, Paths] = {}


def once(name: str, ask: Callable[[], Paths]) -> Paths:
    """The local paths that `ask` gives for `name`: asked for by one process of this start on this node.

    What `ask` raises is raised, and the next process asks again.
    """
    if name not in _told or not _there(_told[name]):
        _told[name] = _asked(name, ask)
    return _told[name]


def _asked(name: str, ask: Callable[[], Paths]) -> Paths:
    from train.hub.cachedir import cache_directory, locked

    locks = cache_directory() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ask()
    if not os.access(locks, os.W_OK):  # a home directory that is only read; the hub's own cache may be elsewhere
        return ask()
    file = re.sub(r"[^\w.-]", "-", f"hub-{name.replace('/', '--')}")
    with locked(locks / f"{file}.lock"):
        record, start = locks / f"{file}.json", _start()
        kept = _kept(record, start)
        if kept is None:
            kept = ask()
            if start is not None:
                write_json(record, {"start": start, "time": time.time(), "paths": kept})
        return kept


def _kept(record: Path, start: str | None) -> Paths | None:
    """What another rank of this start was told, if one was and it still is there."""
    if start is None:
        return None
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        fresh = content["start"] == start and 0 <= time.time() - content["time"] < FRESH_SECONDS
        paths: Paths = content["paths"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return paths if fresh and _there(paths) else None


def _there(paths: Paths) -> bool:
    return all(Path(path).exists() for path in paths)


def _start() -> str | None:
    """What the ranks of one start have in common on a node: their port, and their parent (an agent, torchrun, a step of
    Slurm). None for a rank that is alone on its node.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < 2:
        return None
    parent = os.getppid()
    try:
        began = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        began = ""
    return f"{parent} {began} {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"

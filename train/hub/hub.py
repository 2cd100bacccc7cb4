"""Query a hub once per node and start: one rank does, and the other ranks of its node read the answer.

Nothing is fetched twice, a start of many ranks sends the requests of one, and all ranks see the same revision even if
the hub gets a new one meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from train.rundir.run_files import write_json

FRESH_SECONDS = 3600.0
"""Ask again for older answers: what looks like this start may be a later start from the same shell."""

Paths = list[str]
_answers: dict[str, Paths] = {}


def once(name: str, ask: Callable[[], Paths]) -> Paths:
    """Return the local paths that `ask` gives for `name`, called by one process of this start on this node.

    Errors of `ask` pass through, and the next process asks again.
    """
    if name not in _answers or not _all_exist(_answers[name]):
        _answers[name] = _ask_under_lock(name, ask)
    return _answers[name]


def _ask_under_lock(name: str, ask: Callable[[], Paths]) -> Paths:
    from train.hub.cachedir import cache_directory, locked

    locks = cache_directory() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ask()
    if not os.access(locks, os.W_OK):  # a read-only home directory; the hub's own cache may be elsewhere
        return ask()
    file = re.sub(r"[^\w.-]", "-", f"hub-{name.replace('/', '--')}")
    with locked(locks / f"{file}.lock"):
        record, start = locks / f"{file}.json", _start_id()
        kept = _recorded(record, start)
        if kept is None:
            kept = ask()
            if start is not None:
                write_json(record, {"start": start, "time": time.time(), "paths": kept})
        return kept


def _recorded(record: Path, start: str | None) -> Paths | None:
    """The answer to another rank of this start, if there is one and its paths still exist."""
    if start is None:
        return None
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        fresh = content["start"] == start and 0 <= time.time() - content["time"] < FRESH_SECONDS
        paths: Paths = content["paths"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return paths if fresh and _all_exist(paths) else None


def _all_exist(paths: Paths) -> bool:
    return all(Path(path).exists() for path in paths)


def _start_id() -> str | None:
    """Identify this start: its ranks on a node share their port and their parent (an agent, torchrun, a Slurm step).

    None for a rank that is alone on its node.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < 2:
        return None
    parent = os.getppid()
    try:
        began = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        began = ""
    return f"{parent} {began} {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"

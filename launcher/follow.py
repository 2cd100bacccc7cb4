"""Reading a run directory: the state of a run from its nodes' records, its logs by offset.

Nothing here asks a scheduler or a host; it works on any copy of a run directory.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.backends.base import LogLine, RunState
from launcher.node import processes
from launcher.node.agent.causes import first_cause
from launcher.node.files import read_json
from launcher.process import is_same_process

if TYPE_CHECKING:
    from launcher.runs import RunDir

Record = dict[str, Any]

STATE_OF_NODE = {
    "RUNNING": RunState.RUNNING,
    "SUCCEEDED": RunState.SUCCEEDED,
    "FAILED": RunState.FAILED,
    "STOPPED": RunState.CANCELLED,
    "CANCELLED": RunState.CANCELLED,
}
SILENT_AFTER = 30.0
"""Seconds without a heartbeat after which another machine's agent counts as lost (it beats every 5 s)."""
CHUNK = 1 << 20
"""Most bytes that one look at one log reads, so that following many ranks needs little memory."""
POLL_SECONDS = 0.2

_LOG_NAME = re.compile(r"node-(\d+)/(?:rank-(\d+)|agent)\.log$")


def node_records(run: RunDir) -> dict[int, Record]:
    """{node rank: record} of the nodes whose agent has started; unreadable files are left out."""
    found = {}
    for path in sorted((run.path / "nodes").glob("node-*.json")):
        record = read_json(path)
        if record is not None and isinstance(record.get("node_rank"), int):
            found[record["node_rank"]] = record
    return found


def is_local(record: Record) -> bool:
    """Whether the record's pids mean something here: same machine, same boot, same pid namespace."""
    here = (socket.gethostname(), processes.boot_id(), processes.pid_namespace())
    return (record["host"], record["boot_id"], record.get("pid_namespace", here[2])) == here


def is_agent_alive(record: Record, *, now: float | None = None) -> bool:
    """Whether the agent of a RUNNING record (or the warden that cleans up after it) lives, as far as we can see."""
    if is_local(record):
        warden = record.get("warden") or record
        return any(is_same_process(p["pid"], p["start_time"], record["boot_id"]) for p in (record, warden))
    if record["host"] == socket.gethostname() and record["boot_id"] != processes.boot_id():
        return False
    return (time.time() if now is None else now) - float(record["heartbeat"]) < SILENT_AFTER


def node_state(record: Record, *, now: float | None = None) -> RunState:
    """State of one node; LOST if its record says running and no agent of it lives."""
    state = STATE_OF_NODE[record["state"]]
    return RunState.LOST if state is RunState.RUNNING and not is_agent_alive(record, now=now) else state


def derive_state(run: RunDir, *, now: float | None = None) -> RunState:
    """State of the run: node 0's agent is the hub, so its verdict is the run's; the run lasts while any agent lives."""
    state = _by_records(run, now)
    # An agent may have written its last word and ended between the look at its record and the one at its process.
    return _by_records(run, now) if state is RunState.LOST else state


def _by_records(run: RunDir, now: float | None) -> RunState:
    states = {rank: node_state(record, now=now) for rank, record in node_records(run).items()}
    if not states:
        return RunState.PENDING
    if RunState.RUNNING in states.values():
        return RunState.RUNNING
    return states[0] if 0 in states else max(states.values(), key=list(RunState).index)


def first_failure(run: RunDir) -> dict[str, Any] | None:
    """The failure to show to people: the first cause that is not the echo of another's; None if there is none.

    Where no agent could write one down, what the scheduler said of the run (errors/slurm.json).
    """
    records = sorted(node_records(run).items())
    found = first_cause(record["failure"] for _, record in records if record.get("failure"))
    return found or read_json(run.path / "errors" / "slurm.json")


class LogFollower:
    """New lines of a run's logs; every byte is read once, and a line is given only when it is whole."""

    def __init__(self, run: RunDir, *, rank: int | None = None) -> None:
        self._logs = run.path / "logs"
        self._rank = rank
        self._offsets: dict[Path, int] = {}
        self._rest: dict[Path, bytes] = {}

    def poll(self, *, last: bool = False) -> list[LogLine]:
        """Lines written since the last call, file by file; with `last` unfinished lines too."""
        lines: list[LogLine] = []
        for path, node, rank in self._files():
            while True:
                data = self._read(path)
                lines += [LogLine(node, rank, visible(line)) for line in self._split(path, data)]
                if not last or not data:
                    break
            if last and self._rest.get(path):
                lines.append(LogLine(node, rank, visible(self._rest.pop(path))))
        return lines

    def _files(self) -> Iterator[tuple[Path, int, int | None]]:
        """(path, node rank, rank) of the logs that are wanted: one rank's, or all and the agents' own."""
        for path in sorted(self._logs.glob("node-*/*.log"), key=_order):
            found = _LOG_NAME.search(path.as_posix())
            if found is None:
                continue
            rank = None if found[2] is None else int(found[2])
            if self._rank is None or rank == self._rank:
                yield path, int(found[1]), rank

    def _read(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = self._offsets.get(path, 0)
                if size < start:  # somebody emptied it
                    start, self._rest[path] = 0, b""
                file.seek(start)
                data = file.read(CHUNK)
        except OSError:
            return b""
        self._offsets[path] = start + len(data)
        return data

    def _split(self, path: Path, data: bytes) -> list[bytes]:
        *lines, self._rest[path] = (self._rest.get(path, b"") + data).split(b"\n")
        return lines


def visible(line: bytes) -> str:
    """Text of a log line: what a progress bar showed last, whatever the encoding."""
    return line.decode("utf-8", "replace").rstrip("\r").rsplit("\r", 1)[-1]


def _order(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", "/".join(path.parts[-2:])))


def follow_logs(
    run: RunDir, *, rank: int | None = None, follow: bool = False, ended: Callable[[], bool] = lambda: True
) -> Iterator[LogLine]:
    """Log lines so far; with `follow` also those to come, until `ended()` says that the run is over."""
    follower = LogFollower(run, rank=rank)
    while True:
        over = not follow or ended()  # asked before the last look, so that nothing written meanwhile is missed
        yield from follower.poll(last=over)
        if over:
            return
        time.sleep(POLL_SECONDS)

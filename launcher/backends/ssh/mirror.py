"""Copy the growing files of a run from its hosts: append what is new, fetch no byte twice.

The size of a file here is the offset from which to read on there, so a copy survives any crash of the launcher. Files
keep their names: a command that reads a run directory need not know that it is a copy. Only events.jsonl differs. Each
file system there has its own; each is kept as `nodes/events-<r>.jsonl`, and its lines go into the one here.

A host is not trusted: it may only add to files of its own node (rundir/foreign_files.py), and leave no holes in them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from launcher.node import run_files
from launcher.remote.session import AnswerRefused, HostError, Json
from launcher.rundir.directory import RunDir, write_atomic
from launcher.rundir.foreign_files import is_of_node

MOST_LINE = 1 << 20
"""Bytes of a line of events, beyond which it is none."""


class Mirror:
    """The local files of one run. `leaders[r]`: the first node that sees the same working directory as node r."""

    def __init__(self, run: RunDir, leaders: Sequence[int]) -> None:
        self.run, self.leaders = run, list(leaders)

    def lock(self, seconds: float) -> FileLock:
        """Hold it while copying, so that two commands that watch one run do not append the same bytes twice.

        `seconds`: how long it is waited for.
        """
        return FileLock(self.run.path / ".mirror.lock", timeout=seconds)

    def tops(self, node: int, logs: bool, rank: int | None = None) -> list[str]:
        """Return what to read from a node. Each file is read from one node only, a shared one from its leader."""
        names = [run_files.METRICS] if node == 0 else []
        if self.leaders[node] == node:
            names.append(run_files.EVENTS)
        if logs:
            names.append(run_files.node_logs(node) if rank is None else run_files.rank_log(node, rank))
        return names

    def offsets(self, node: int, tops: Sequence[str]) -> dict[str, int]:
        """Return {name there: bytes that are here already}."""
        found: dict[str, int] = {}
        for top in tops:
            local = self._local_path(node, top)
            for file in local.rglob("*") if local.is_dir() else [local]:
                if file.is_file():
                    name = top if file == local else f"{top}/{file.relative_to(local).as_posix()}"
                    found[name] = file.stat().st_size
        return found

    def apply(self, node: int, answer: Json) -> None:
        """Write down one answer of the far end's `poll_node`. Raises HostError, before anything is written."""
        record, start = answer["record"], 0
        if record is not None and record.get("node_rank", node) != node:
            raise HostError(f"its record is that of node {record['node_rank']}, not of node {node}")
        for name, offset, _ in answer["files"]:
            if not is_of_node(name, node):
                raise AnswerRefused(f"it sent a file that node {node} does not write: {name!r}")
            if offset and offset != self._size(node, name):
                raise AnswerRefused(f"it sent bytes of {name} from {offset} on, and {self._size(node, name)} are here")
        if record is not None:
            write_atomic(self.run.node_record(node), json.dumps(record, indent=1))
        for name, offset, length in answer["files"]:
            self._append(node, name, offset, answer["payload"][start : start + length])
            start += length

    def _size(self, node: int, name: str) -> int:
        path = self._local_path(node, name)
        return path.stat().st_size if path.is_file() else 0

    def _append(self, node: int, name: str, offset: int, data: bytes) -> None:
        path = self._local_path(node, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == run_files.EVENTS:
            self._append_events(path, offset, data)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(data)

    def _append_events(self, path: Path, offset: int, data: bytes) -> None:
        """Append whole new lines to the run's events. A torn line waits for its rest."""
        torn = b""
        if path.exists() and offset:
            with path.open("rb") as file:
                file.seek(max(0, offset - MOST_LINE))
                torn = file.read().rpartition(b"\n")[2]
        lines = (torn + data).rpartition(b"\n")[0]
        if lines:
            with self.run.events.open("ab") as file:
                file.write(lines + b"\n")

    def _local_path(self, node: int, name: str) -> Path:
        return self.run.nodes_dir / f"events-{node}.jsonl" if name == run_files.EVENTS else self.run.path / name

    def forget(self, node: int) -> None:
        """Remove what was copied from a node that is another host now, whose files start from the beginning."""
        for path in (self.run.node_record(node), self._local_path(node, run_files.EVENTS)):
            path.unlink(missing_ok=True)
        for log in (self.run.path / run_files.node_logs(node)).glob("*.log"):
            log.unlink()

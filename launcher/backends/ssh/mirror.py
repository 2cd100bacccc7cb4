"""The launcher's copy of a run whose files lie on hosts: what grew there is appended here, nothing is fetched twice.

The size of a file here is the offset to read on from there, so a copy survives any crash of the launcher. Files keep
their names, and the commands that read a run directory need not know that it is a copy. Only events.jsonl differs:
every file system there has its own, so each is kept as `nodes/events-<r>.jsonl` and its lines go into the one here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from launcher.node import run_files
from launcher.rundir.directory import RunDir, write_atomic

Json = dict[str, Any]


class Mirror:
    """Local files of one run; `leaders[r]` is the first node that sees the same working directory as node r."""

    def __init__(self, run: RunDir, leaders: Sequence[int]) -> None:
        self.run, self.leaders = run, list(leaders)

    def lock(self) -> FileLock:
        """Held while copying: two commands that watch one run must not append the same bytes twice."""
        return FileLock(self.run.path / ".mirror.lock", timeout=30)

    def tops(self, node: int, logs: bool, rank: int | None = None) -> list[str]:
        """What to read from a node, each file from one node only: a shared one from its leader."""
        wanted = [run_files.METRICS] if node == 0 else []
        if self.leaders[node] == node:
            wanted.append(run_files.EVENTS)
        if logs:
            wanted.append(run_files.node_logs(node) if rank is None else run_files.rank_log(node, rank))
        return wanted

    def offsets(self, node: int, tops: Sequence[str]) -> dict[str, int]:
        """{name there: bytes that are here already}."""
        found: dict[str, int] = {}
        for top in tops:
            here = self._here(node, top)
            files = here.rglob("*") if here.is_dir() else [here]
            for file in files:
                if file.is_file():
                    name = top if file == here else f"{top}/{file.relative_to(here).as_posix()}"
                    found[name] = file.stat().st_size
        return found

    def apply(self, node: int, answer: Json) -> None:
        """Write down one answer of the far end's `look`."""
        if answer["record"] is not None:
            write_atomic(self.run.node_record(node), json.dumps(answer["record"], indent=1))
        start = 0
        for name, offset, length in answer["files"]:
            self._append(node, name, offset, answer["payload"][start : start + length])
            start += length

    def _append(self, node: int, name: str, offset: int, data: bytes) -> None:
        path = self._here(node, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.stat().st_size if path.exists() else 0
        if name == run_files.EVENTS:
            self._events(path, offset, data)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(min(offset, old))
            file.seek(offset)
            file.write(data)

    def _events(self, path: Path, offset: int, data: bytes) -> None:
        """Whole new lines go into the run's events; a torn one waits for its rest."""
        torn = path.read_bytes().rpartition(b"\n")[2] if path.exists() and offset else b""
        lines = (torn + data).rpartition(b"\n")[0]
        if lines:
            with self.run.events.open("ab") as file:
                file.write(lines + b"\n")

    def _here(self, node: int, name: str) -> Path:
        return self.run.nodes_dir / f"events-{node}.jsonl" if name == run_files.EVENTS else self.run.path / name

    def forget(self, node: int) -> None:
        """The node is another host now: what was copied from the old one is no beginning of the new one's files."""
        for path in (self.run.node_record(node), self._here(node, run_files.EVENTS)):
            path.unlink(missing_ok=True)
        for log in (self.run.path / run_files.node_logs(node)).glob("*.log"):
            log.unlink()

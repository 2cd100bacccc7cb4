"""The logs of a run, read by offset from any copy of its run directory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.rundir.directory import RunDir


CHUNK = 1 << 20
"""Bytes read at a time, so that following many ranks needs little memory."""
POLL_SECONDS = 0.2

_LOG_NAME = re.compile(r"node-(\d+)/(?:rank-(\d+)|agent)\.log$")


class LogFollower:
    """Gives the new lines of a run's logs. Every byte is read once, and only complete lines are given."""

    def __init__(self, run: RunDir, *, rank: int | None = None) -> None:
        self._logs = run.logs_dir
        self._rank = rank
        self._offsets: dict[Path, int] = {}
        self._rest: dict[Path, bytes] = {}

    def poll(self, *, last: bool = False) -> list[LogLine]:
        """Lines written since the last call, file by file; with `last`, also incomplete lines."""
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
        """(path, node rank, rank) of the log of one rank, or of all logs, those of the agents included."""
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
                if size < start:  # the file was truncated
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
    """The text of a log line. Of a progress bar, only its last state; invalid bytes are replaced."""
    return line.decode("utf-8", "replace").rstrip("\r").rsplit("\r", 1)[-1]


def _order(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", "/".join(path.parts[-2:])))


def follow_logs(
    run: RunDir, *, rank: int | None = None, follow: bool = False, ended: Callable[[], bool] = lambda: True
) -> Iterator[LogLine]:
    """Log lines so far; with `follow`, also new lines until `ended()` returns True."""
    follower = LogFollower(run, rank=rank)
    while True:
        over = not follow or ended()  # before the last read, so that nothing is missed
        yield from follower.poll(last=over)
        if over:
            return
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class LogLine:
    node_rank: int
    rank: int | None
    """None for a line of the agent."""
    text: str

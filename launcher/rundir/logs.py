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
"""Bytes read at a time. A longer line is given in parts, so that no log needs more memory than a few of them."""
POLL_SECONDS = 0.2

_LOG_NAME = re.compile(r"node-(\d+)/(?:rank-(\d+)|agent)\.log$")


@dataclass(frozen=True)
class LogBlock:
    """Some lines of one log, in the order in which they were written."""

    node_rank: int
    rank: int | None
    """None for lines of the agent."""
    text: str
    """Whole lines, each with its line feed."""

    @property
    def lines(self) -> list[str]:
        return self.text[:-1].split("\n")

    def prefixed(self, prefix: str) -> str:
        """The text with `prefix` before each line."""
        return prefix + self.text[:-1].replace("\n", f"\n{prefix}") + "\n" if prefix else self.text


class LogFollower:
    """Gives the new lines of a run's logs. Every byte is read once, and only complete lines are given.

    `tail`: begin with so many lines of each log that there is at the first poll.
    """

    def __init__(self, run: RunDir, *, rank: int | None = None, tail: int | None = None) -> None:
        self._logs = run.logs_dir
        self._rank = rank
        self._tail = tail
        self._offsets: dict[Path, int] = {}
        self._rest: dict[Path, bytes] = {}

    def poll(self, *, last: bool = False) -> Iterator[LogBlock]:
        """Yield what was written since the last call, file by file; with `last`, also incomplete lines."""
        for path, node, rank in self._files():
            if self._tail is not None and path not in self._offsets:
                self._offsets[path] = start_of_tail(path, self._tail)
            for data in self._chunks(path):
                lines, end, self._rest[path] = (self._rest.get(path, b"") + data).rpartition(b"\n")
                if lines or end:
                    yield LogBlock(node, rank, visible(lines + end))
                if len(self._rest[path]) >= CHUNK:
                    yield LogBlock(node, rank, visible(self._rest.pop(path) + b"\n"))
            if last and self._rest.get(path):
                yield LogBlock(node, rank, visible(self._rest.pop(path) + b"\n"))
        self._tail = None  # logs that appear later are read from their beginning

    def _files(self) -> Iterator[tuple[Path, int, int | None]]:
        """(path, node rank, rank) of the log of one rank, or of all logs, those of the agents included."""
        for path in sorted(self._logs.glob("node-*/*.log"), key=_order):
            found = _LOG_NAME.search(path.as_posix())
            if found is None:
                continue
            rank = None if found[2] is None else int(found[2])
            if self._rank is None or rank == self._rank:
                yield path, int(found[1]), rank

    def _chunks(self, path: Path) -> Iterator[bytes]:
        """Read what the file holds at the moment; a rank that writes on cannot keep its reader from the other ranks."""
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = self._offsets.get(path, 0)
                if size < start:  # the file was truncated
                    start, self._rest[path] = 0, b""
                file.seek(start)
                while start < size and (data := file.read(min(CHUNK, size - start))):
                    start += len(data)
                    self._offsets[path] = start
                    yield data
        except OSError:
            return


def start_of_tail(path: Path, lines: int) -> int:
    """The offset at which the last `lines` lines of a file begin."""
    try:
        with path.open("rb") as file:
            at = end = file.seek(0, os.SEEK_END)
            wanted = lines
            while at > 0:
                start = max(0, at - CHUNK)
                file.seek(start)
                data = file.read(at - start)
                stop = len(data) - (at == end and data.endswith(b"\n"))  # the last line's own end
                while wanted and (stop := data.rfind(b"\n", 0, stop)) >= 0:
                    wanted -= 1
                if not wanted:
                    return end if not lines else start + stop + 1
                at = start
    except OSError:
        pass
    return 0


def visible(data: bytes) -> str:
    """The text of lines of a log. Of a progress bar, only its last state; invalid bytes are replaced."""
    text = data.decode("utf-8", "replace")
    if "\r" in text:
        text = re.sub(r"[^\n]*\r", "", re.sub(r"\r+(?=\n|\Z)", "", text))
    return text


def _order(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", "/".join(path.parts[-2:])))


def follow_logs(
    run: RunDir,
    *,
    rank: int | None = None,
    follow: bool = False,
    tail: int | None = None,
    ended: Callable[[], bool] = lambda: True,
) -> Iterator[LogBlock]:
    """Log lines so far; with `follow`, also new lines until `ended()` returns True."""
    follower = LogFollower(run, rank=rank, tail=tail)
    while True:
        over = not follow or ended()  # before the last read, so that nothing is missed
        yield from follower.poll(last=over)
        if over:
            return
        time.sleep(POLL_SECONDS)

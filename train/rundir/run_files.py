"""The run directory as the training program sees it: every file name it uses, and how it writes these files.

Files that other programs read during the run are written to a temporary name and renamed. Each log line is one
write(2).
"""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

REQUESTS = ("checkpoint", "stop")
"""Requests in control/, in the order of the flags that the ranks exchange."""


class RunDir:
    """Name the files of one run's directory, and make small writes to it."""

    def __init__(self, path: str | os.PathLike[str], *, node: int = 0, rank: int = 0, is_over: bool = False) -> None:
        """`is_over`: the run has ended, so its events stay as they are."""
        self.path = Path(path).resolve()
        self.is_over = is_over
        self.node = node
        self.rank = rank
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.result = self.path / "result.json"
        self.predictions = self.path / "predictions.jsonl"
        self.evaluations = self.path / "evaluations"
        """Later evaluations: <name of the data>/{scores.json,predictions.jsonl}."""
        self.ds_config = self.path / "ds_config.json"
        self.base_model = self.path / "base_model"
        """Only for runs with source `random`: the generated model."""
        self.cache = self.path / "cache"

    def control(self, request: str) -> Path:
        return self.path / "control" / request

    def error(self, rank: int) -> Path:
        return self.path / "errors" / f"rank-{rank}.json"

    def event(self, event: str, **fields: Any) -> None:
        """Append a line about this node and rank to events.jsonl."""
        if self.is_over:
            return
        append_line(
            self.events, {"time": round(time.time(), 3), "event": event, "node": self.node, "rank": self.rank, **fields}
        )

    def requests(self) -> list[bool]:
        """Whether each of REQUESTS was made."""
        return [self.control(request).exists() for request in REQUESTS]

    def asked_by(self, request: str) -> str | None:
        """Who made the request, if it says so."""
        try:
            content = json.loads(self.control(request).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content.get("by") if isinstance(content, dict) else None

    def withdraw(self, request: str) -> None:
        self.control(request).unlink(missing_ok=True)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a JSON object as a line. O_APPEND and a single write keep lines of several writers apart.

    Raises OSError with the file's name, also where a full disk took only a part of the line. A line begins a new line
    even if the one before was cut off.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.fstat(handle).st_size
        torn = end > 0 and os.pread(handle, 1, end - 1) not in (b"\n", b"")
        data = (("\n" if torn else "") + json.dumps(line, ensure_ascii=False) + "\n").encode()
        if os.write(handle, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(handle)


def write_atomic(path: Path, text: str) -> None:
    """Write to a temporary name beside `path`, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # process ids repeat in containers and threads
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)  # a failed write names no file, or the temporary one
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    write_atomic(path, json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False, default=str) + "\n")


def sync_directory(path: Path) -> None:
    """Make renames and new files in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

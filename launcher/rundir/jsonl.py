"""JSON lines: a whole file, or a growing one by offset. An incomplete last line is left out until it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that may still be growing; empty if it does not exist."""
    try:
        return list(_objects(path.read_bytes()))
    except FileNotFoundError:
        return []


class JsonlTail:
    """Reads a growing file and gives every object once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The objects that were completed since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self.offset += len(complete)
        return list(_objects(complete))


def damaged_lines(path: Path, *, most_bytes: int = 16 << 20) -> list[int]:
    """Numbers of the lines, from 1, that are no JSON objects: a full disk or a crash has cut them off.

    Of a file of more than `most_bytes` only the end is looked at, and lines count from there.
    """
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - most_bytes)
            file.seek(start)
            lines = file.read().split(b"\n")
    except OSError:
        return []
    complete = lines[bool(start) : -1]  # the last one may still be growing
    return [number for number, line in enumerate(complete, 1) if line and not list(_objects(line))]


def _objects(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        try:
            item = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue  # a line torn by a crash
        if isinstance(item, dict):  # the rest of a torn line may be a JSON number
            yield item

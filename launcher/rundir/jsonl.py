"""Read a growing file of JSON lines by offset: nothing is read twice, a torn last line waits for its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


class JsonlTail:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The objects completed since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                found.append(msgspec.json.decode(line))
            except msgspec.DecodeError:
                continue  # a line torn by a crash
        return [item for item in found if isinstance(item, dict)]

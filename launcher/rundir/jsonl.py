"""JSON lines of a file that may still be growing. An incomplete last line is left out until it is complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import RunNotFound


def read_jsonl(path: Path, shape: Any = dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of this shape in a file that may still be growing; empty if it does not exist. Raises RunNotFound."""
    try:
        return list(_objects(path.read_bytes(), shape))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunNotFound(f"cannot read {path}: {error.strerror}", code="ZL-RUN-02") from error


def complete_lines(path: Path, *, most_bytes: int = 16 << 20) -> list[bytes]:
    """The lines that have an end; of a file of more than `most_bytes` only those at its end. Empty if unreadable."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - most_bytes)
            file.seek(start)
            lines = file.read().split(b"\n")
    except OSError:
        return []
    return lines[bool(start) : -1]  # the last one may still be growing


def unlike(lines: Sequence[bytes], shape: Any = dict[str, Any]) -> list[int]:
    """Numbers of the lines, from 1, that are no objects of this shape: a full disk or a crash has cut them off."""
    decoder, found = msgspec.json.Decoder(shape), []
    for first in range(0, len(lines), BATCH):
        batch = lines[first : first + BATCH]
        if not _are_all_sound(batch, decoder):
            numbered = enumerate(batch, first + 1)
            found += [number for number, line in numbered if line and not list(_objects(line, shape))]
    return found


BATCH = 1000
"""Lines that are looked at together: ten times as fast as one by one, which only damaged ones need."""


def _are_all_sound(lines: Sequence[bytes], decoder: msgspec.json.Decoder[Any]) -> bool:
    data = b"\n".join(lines)
    try:
        data.decode()  # the decoder does not look at the texts of keys that the shape does not name
        return len(decoder.decode_lines(data)) == sum(map(bool, lines))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def ends_torn(path: Path) -> bool:
    """Whether the last line has no end: it is being written, or was cut off; also if the file cannot be read."""
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                return False
            file.seek(-1, 2)
            return file.read(1) != b"\n"
    except OSError as error:
        return not isinstance(error, FileNotFoundError)


def _objects(data: bytes, shape: Any) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        try:
            item = msgspec.json.decode(line, type=dict[str, Any])
            msgspec.convert(item, shape)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue  # a line torn by a crash, or damaged
        yield item

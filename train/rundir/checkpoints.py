"""The checkpoints of a run directory: which are complete, and whether they hold what was written.

The marker of a complete one records size and SHA-256 of each file; both are checked before use.

Disks, networks and copies damage files without a word. A checkpoint with other bytes than were written is never used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

MARKER = "COMPLETE"
"""The file that marks a checkpoint as complete. Version 0.1 left it empty; now it holds the manifest."""
STEP_NAME = re.compile(r"step-([0-9]{1,18})")
STATE = "state.json"
SCHEMA = 3
"""Of state.json. 2: the marker must hold a manifest. 3: the progress has the best measurement."""
_LARGEST = 1 << 24
"""Bytes of a marker or state.json, at most; larger ones are damaged."""


def complete(checkpoints: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    found = [
        path for path in checkpoints.glob("step-*") if STEP_NAME.fullmatch(path.name) and (path / MARKER).is_file()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def manifest(directory: Path) -> str:
    """The text of the marker for the files that are below `directory` now."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != MARKER)
    content = {path.relative_to(directory).as_posix(): [path.stat().st_size, _sha256(path)] for path in files}
    return json.dumps({"sha256": _sha256_of_files(content), "files": content}, indent=1) + "\n"


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a complete checkpoint, as `FILE: reason`; None if it holds what was written.

    Without a manifest (version 0.1), only the structure of the files can be checked. Raises OSError where files cannot
    be read for another reason than a faulty disk: such a checkpoint may be whole.
    """
    try:
        return _damage(checkpoint)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        return f"{_name(error, checkpoint)}: missing"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return f"{_name(error, checkpoint)}: {error.strerror}"


def recorded(checkpoint: Path) -> dict[str, Any] | None:
    """state.json of a complete checkpoint; None if it cannot be read or is not what was written.

    Reads no other file: for the settings of a checkpoint, the hashes of its weights need not be computed.
    """
    try:
        content = _json_object(checkpoint / STATE)
        if (checkpoint / MARKER).stat().st_size == 0:  # version 0.1
            return content if content is not None and content.get("schema") == 1 else None
        written = (_manifest(checkpoint) or {}).get(STATE)
        return content if written and _difference(checkpoint / STATE, *written) is None else None
    except OSError:
        return None


def undamaged(
    checkpoints: Path,
    on_damage: Callable[[Path, str], None],
    damage_of: Callable[[Path], str | None] = damage,
) -> Iterator[Path]:
    """The complete checkpoints that hold what was written, newest first; `on_damage` gets the others, with the reason.

    `damage_of` may know more than `damage`. Raises OSError as it does.
    """
    for place in reversed(complete(checkpoints)):
        reason = damage_of(place)
        if reason is None:
            yield place
        else:
            on_damage(place, reason)


def set_aside(place: Path) -> Path:
    """Rename a damaged checkpoint to `damaged-step-<n>`, which no start uses; return its new path."""
    names = [f"damaged-{place.name}", *(f"damaged-{place.name}-{n}" for n in range(2, 1000))]
    aside = next(path for path in map(place.with_name, names) if not path.exists())
    return place.rename(aside)


def _damage(checkpoint: Path) -> str | None:
    empty = (checkpoint / MARKER).stat().st_size == 0
    if empty and not (checkpoint / STATE).exists() and not (checkpoint / "state.safetensors").exists():
        return None  # a user's program made it in a way of its own
    content = _json_object(checkpoint / STATE)
    if empty:
        return _damage_without_manifest(checkpoint, content)
    files = _manifest(checkpoint)
    if files is None:
        return f"{MARKER}: is not the one that was written"
    for name, written in files.items():
        if difference := _difference(checkpoint / name, *written):
            return f"{name}: {difference}"
    return _other_step(checkpoint, content)


def _manifest(checkpoint: Path) -> dict[str, Any] | None:
    """{file: (size, hash)} as the marker has it; None if the marker is damaged."""
    marker = _json_object(checkpoint / MARKER) or {}
    files = marker.get("files")
    return files if _is_manifest(files) and _sha256_of_files(files) == marker.get("sha256") else None


def _is_manifest(files: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it names files below the checkpoint, each with a size and a hash."""
    return isinstance(files, dict) and all(
        isinstance(entry, list)
        and [type(field) for field in entry] == [int, str]
        and not {"", ".", ".."} & {*name.split("/")}
        for name, entry in files.items()
    )


def _difference(path: Path, size: int, digest: str) -> str | None:
    """How a file differs from what was written."""
    if (now := path.stat().st_size) != size:
        return f"has {now:,} bytes instead of {size:,}"
    return None if _sha256(path) == digest else "has other content than was written"


def _damage_without_manifest(checkpoint: Path, content: dict[str, Any] | None) -> str | None:
    if content is None or not isinstance(_step(content), int):
        return f"{STATE}: holds no progress"
    if content.get("schema") != 1:
        return f"{MARKER}: is empty"
    for path in sorted(checkpoint.rglob("*.safetensors")):
        if not _is_safetensors(path):
            return f"{path.relative_to(checkpoint).as_posix()}: header and size do not belong together"
    return _other_step(checkpoint, content)


def _other_step(checkpoint: Path, content: dict[str, Any] | None) -> str | None:
    named = STEP_NAME.fullmatch(checkpoint.name)
    return f"{STATE}: is of step {_step(content)}" if named and _step(content) != int(named[1]) else None


def _is_safetensors(path: Path) -> bool:
    """Whether the header is one, and the tensors that it names fill the file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
            return False
    return bool(8 + length + max(ends, default=0) == path.stat().st_size)


def _step(content: dict[str, Any] | None) -> Any:
    progress = (content or {}).get("progress")
    return progress.get("step") if isinstance(progress, dict) else None


def _json_object(path: Path) -> dict[str, Any] | None:
    if path.stat().st_size > _LARGEST:
        return None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _sha256_of_files(files: dict[str, Any]) -> str:
    """The hash that guards the manifest itself."""
    return hashlib.sha256(json.dumps(files, indent=1).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _name(error: OSError, checkpoint: Path) -> str:
    path = Path(str(error.filename or checkpoint))
    return path.relative_to(checkpoint).as_posix() if path.is_relative_to(checkpoint) else str(path)

"""Files: the store of inputs, found by their hash, and the files of a run directory, read and written in blocks."""

from __future__ import annotations

import os
from contextlib import suppress

from ..files import temporary_name
from .common import ANSWER, CHUNK, MOST_FILES, Refused

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, BinaryIO, Dict, Iterator, List, Sequence, Tuple

    from ..files import Json


def find_inputs(inputs: Sequence[Json], workdir: str, **_: Any) -> Json:
    """{hash: path} of the inputs that this host has, in the store or at the path that they have at the launcher."""
    found = {}
    for item in inputs:
        stored = store_path(workdir, item)
        if has_size(stored, item["size"]):  # a file may be shorter after the host lost its power
            found[item["sha256"]] = stored
        elif is_same_file(item):
            found[item["sha256"]] = item["path"]
    return {"found": found}


def store_path(workdir: str, item: Json) -> str:
    return os.path.join(workdir, "data", item["sha256"][:32], item["name"])


def has_size(path: str, size: int) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) == size


def is_same_file(item: Json) -> bool:
    """Whether the file at the launcher's path has the same content on this host."""
    with suppress(OSError):
        return has_size(item["path"], item["size"]) and sha256_of(item["path"]) == item["sha256"]
    return False


def sha256_of(path: str) -> str:
    import hashlib

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(CHUNK), b""):
            digest.update(block)
    return digest.hexdigest()


def store_input(workdir: str, item: Json, source: BinaryIO, **_: Any) -> Json:
    """Receive one input from the channel, check its hash and rename it into place. Raises Refused, OSError."""
    import hashlib

    target = store_path(workdir, item)
    temporary = temporary_name(target)
    digest = hashlib.sha256()
    incoming = blocks(source, item["size"])
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(temporary, "wb") as file:
            for block in incoming:
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != item["sha256"]:
            raise Refused("%s changed while it was sent" % item["name"])
        os.replace(temporary, target)
    finally:
        for _block in incoming:
            pass  # the next request follows the whole payload, even if the disk is full
        with suppress(OSError):
            os.unlink(temporary)
    return {"path": target}


def blocks(source: BinaryIO, size: int) -> Iterator[bytes]:
    """The next `size` bytes of the channel. Raises Refused if it ends before."""
    while size:
        block = source.read(min(CHUNK, size))
        if not block:
            raise Refused("the launcher hung up")
        size -= len(block)
        yield block


def tree(run_dir: str, tops: Sequence[str], **_: Any) -> Json:
    """[[relative path, size]] of the regular files below `tops`, which are files or folders of the run directory."""
    return {"files": files_below(run_dir, tops)}


def files_below(run_dir: str, tops: Sequence[str]) -> List[Tuple[str, int]]:
    """(relative path, size) of the regular files below `tops`, at most MOST_FILES."""
    found = []
    for top in tops:
        path = os.path.join(run_dir, top)
        if os.path.isfile(path):
            found.append((top, os.path.getsize(path)))
        for folder, _folders, names in os.walk(path):
            for name in sorted(names):
                full = os.path.join(folder, name)
                if os.path.isfile(full) and is_plain(os.path.relpath(full, path)):
                    found.append((os.path.relpath(full, run_dir), os.path.getsize(full)))
    return found[:MOST_FILES]


def is_plain(name: str) -> bool:
    """Whether the launcher takes a file of this name (launcher/rundir/foreign_files.py)."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and len(parts) <= 16 and max(map(len, parts)) <= 200


def added_since(run_dir: str, tops: Sequence[str], offsets: Dict[str, int]) -> Json:
    """What was added to files below `tops` since `offsets`: `files` [[name, offset, length]], `payload`, and `more`,
    whether the answer was too small for all of it."""
    files, contents, left, more = [], [], ANSWER, False
    for name, size in files_below(run_dir, tops):
        offset = offsets.get(name, 0)
        if size < offset:
            offset = 0  # the file was written anew
        if size > offset and left > 0:
            with open(os.path.join(run_dir, name), "rb") as file:
                file.seek(offset)
                block = file.read(min(CHUNK, left))
            files.append([name, offset, len(block)])
            contents.append(block)
            left -= len(block)
            offset += len(block)
        more = more or size > offset
    return {"files": files, "more": more, "payload": b"".join(contents)}


def get(run_dir: str, name: str, offset: int, **_: Any) -> Json:
    """One block of a file."""
    with open(os.path.join(run_dir, name), "rb") as file:
        file.seek(offset)
        return {"payload": file.read(ANSWER)}


def put(run_dir: str, name: str, offset: int, last: bool, payload: Any, **_: Any) -> Json:
    """Write one block of a file. The file appears under its name with its `last` block."""
    path = os.path.join(run_dir, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = path + ".part"
    with open(part, "r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(payload)
    if last:
        os.replace(part, path)
    return {}

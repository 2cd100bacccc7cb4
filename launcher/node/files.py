"""Read and write small files: readers see no partial file and no torn line."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Union

    Json = Dict[str, Any]
    File = Union[str, "os.PathLike[str]"]

LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 64 * 1024


def remove(path: File) -> None:
    """Delete a file that may be gone already."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def temporary_name(path: File) -> str:
    """A name beside `path` for a file that will be renamed to it. Random: agents in containers share pids."""
    folder, name = os.path.split(path)
    return os.path.join(folder, ".%s.%s.tmp" % (name, os.urandom(4).hex()))


def write_atomic(path: File, content: Union[str, bytes]) -> None:
    """Replace `path` by `content`: readers see the old or the new file, never a part. Raises OSError."""
    temporary = temporary_name(path)
    try:
        write_new(temporary, content)
    except OSError as error:
        error.filename = os.fspath(path)  # not the temporary name
        raise
    try:
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def write_new(path: File, content: Union[str, bytes]) -> None:
    """Write a file that has no reader yet; a failure leaves no part of it. Raises OSError with the file's name."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        error.filename = os.fspath(path)  # a failed write names no file
        with suppress(OSError):
            os.unlink(path)
        raise


def read_text(path: File) -> str:
    """The text of a small file; empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def read_json(path: File) -> Optional[Json]:
    """Return the object in `path`; None if the file is absent, unreadable or not a JSON object."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read().decode("utf-8", "replace"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def append_line(path: File, text: str) -> None:
    """Append a line with one write(2) on an O_APPEND descriptor, so that lines of several writers never mix.

    Raises OSError with the file's name, also where a full disk took only a part of the line. A line begins a new line
    even if the one before was cut off.
    """
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        end = os.fstat(fd).st_size
        torn = end > 0 and os.pread(fd, 1, end - 1) not in (b"\n", b"")
        data = (("\n" if torn else "") + text + "\n").encode("utf-8", "replace")
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    finally:
        os.close(fd)


def tail(path: File, start: int = 0) -> str:
    """Return the last LOG_TAIL_BYTES of a log, from byte `start` on, with invalid bytes replaced."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def last_lines(text: str, count: int = LOG_TAIL_LINES) -> List[str]:
    """Return the last `count` non-empty lines; of a line that a progress bar rewrote, what was visible last."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    return [line for line in lines if line.strip()][-count:]


REMOVING = ".removing-"
"""Begins the name of a directory that is being removed. Whoever finds one may remove the rest."""


def disk_usage(path: File) -> int:
    """Return the bytes on disk that a removal of `path` frees: links are not followed, and a file with another name
    elsewhere frees nothing."""
    found, todo = 0, [os.fspath(path)]
    while todo:
        place = todo.pop()
        with suppress(OSError):  # it has just gone, or cannot be read
            status = os.lstat(place)
            is_directory = (status.st_mode & 0o170000) == 0o040000
            if is_directory:
                todo += [os.path.join(place, name) for name in os.listdir(place)]
            if is_directory or status.st_nlink == 1:
                found += status.st_blocks * 512
    return found


def put_aside(path: File) -> str:
    """Rename a directory to what says that it is being removed; return the new path, also where there is nothing any
    more. Raises OSError."""
    folder, name = os.path.split(os.fspath(path))
    aside = os.path.join(folder, REMOVING + name)
    if os.path.lexists(path):
        remove_tree(aside)  # an earlier removal that was interrupted
        os.rename(path, aside)
    return aside


def remove_tree(path: File) -> None:
    """Remove a directory with all below it, or a link itself; an absent one is no error. Raises OSError."""
    import shutil  # hosts rarely need it

    if os.path.islink(path) or not os.path.isdir(path):
        return remove(path)
    while os.path.isdir(path):
        with suppress(FileNotFoundError):  # another command removes it too
            shutil.rmtree(path)

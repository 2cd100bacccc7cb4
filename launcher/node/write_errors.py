"""Why a file could not be written, in people's words: how much is free, where, and what to do."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Optional, Tuple

FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}
REASONS = {
    **FULL,
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENOENT: "the directory does not exist",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.EEXIST: "a file of that name is in the way",
    errno.EISDIR: "a directory of that name is in the way",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the file server has lost the file",
    errno.EFBIG: "the file is larger than the limit (ulimit -f)",
    errno.ENOTCONN: "the file system is not connected",
}
"""Errors of a place, not of the program."""
SOME_ROOM = 1 << 16
ADVICE = {
    errno.EROFS: "use a directory on a writable file system",
    errno.EACCES: "check owner and mode of the directory",
    errno.EPERM: "check owner and mode of the directory",
    errno.ENOENT: "check whether it was removed or its file system is no longer mounted",
    errno.ENOTDIR: "move that file away, or use another directory",
    errno.EEXIST: "move it away, or use another directory",
    errno.EISDIR: "move it away, or use another directory",
    errno.EIO: "look at the kernel's log (dmesg), and use another disk",
    errno.ESTALE: "mount the file system again",
    errno.ENOTCONN: "mount the file system again",
}


def explain(error: OSError) -> Optional[Tuple[str, str]]:
    """Return (what is wrong, what to do) for an error of REASONS; None for others.

    For a full disk the first part says how much is free, and the second what to free.
    """
    if error.errno not in REASONS:
        return None
    name = error.filename2 or error.filename  # of a copy, the second is what was written
    path = os.path.abspath(os.fsdecode(name)) if isinstance(name, (str, bytes, os.PathLike)) else ""
    reason = REASONS[error.errno]
    if error.errno not in FULL:
        return ("%s: %s" % (path, reason) if path else reason), ADVICE.get(error.errno, "use another directory")
    if not path:
        return reason, "free space"
    place = mount_of(path)
    if lacks_inodes(place):
        reason = "the file system can hold no more files"
        advice = "remove files on %s: the runs of the past have about a hundred each" % place
    else:
        advice = "free space on %s: checkpoints and exports of old runs are the largest files" % place
    return "%s: %s (%s)" % (path, reason, free_on(place)), advice


def mount_of(path: str) -> str:
    """The mount point of a path, or of its nearest folder that exists; `its disk` if that cannot be found out."""
    with suppress(OSError):
        while not os.path.exists(path) and path != os.path.dirname(path):
            path = os.path.dirname(path)
        path = os.path.realpath(path)
        while not os.path.ismount(path):
            path = os.path.dirname(path)
        return path
    return "its disk"


def is_full(place: str) -> bool:
    """Whether hardly anything can be written there: a log ends before the line that says so."""
    with suppress(OSError):
        found = os.statvfs(place)
        return found.f_bavail * found.f_frsize < SOME_ROOM or lacks_inodes(place)
    return False


def lacks_inodes(place: str) -> bool:
    with suppress(OSError):
        found = os.statvfs(place)
        return bool(found.f_files and not found.f_favail)
    return False


def free_on(place: str) -> str:
    """`0 B of 7.4 MiB and 40 of 60 inodes free on /mnt`."""
    try:
        found = os.statvfs(place)
    except OSError:
        return "%s does not answer" % place
    inodes = " and %d of %d inodes" % (found.f_favail, found.f_files) if found.f_files else ""
    free, whole = size(found.f_bavail * found.f_frsize), size(found.f_blocks * found.f_frsize)
    return "%s of %s%s free on %s" % (free, whole, inodes, place)


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return "%.3g %s" % (count, unit) if unit != "B" else "%d B" % count
        count /= 1024
    return "%.3g TiB" % count

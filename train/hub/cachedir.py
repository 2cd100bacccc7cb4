"""Where this user's caches lie on this machine: converted models, tokens, locks."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What flock(2) says on NFS without its lock service, or on Lustre mounted without locks."""


def cache_directory() -> Path:
    """$ZLAUNCH_CACHE, else ~/.cache/zlaunch."""
    return Path(os.environ.get("ZLAUNCH_CACHE") or Path.home() / ".cache" / "zlaunch")


@contextmanager
def locked(file: Path) -> Iterator[bool]:
    """One process at a time; False where the file system has no locks, and nobody waits for anybody.

    What is made inside is made under a name of its own and renamed, so that two who make the same do no harm. (filelock
    would wait without end there, or take a lock that outlives its process.)
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            yield False
        else:
            yield True
    finally:
        os.close(handle)


@contextmanager
def suppress_if_there(place: Path) -> Iterator[None]:
    """For a rename to `place` that comes too late: someone who has no lock with us was faster."""
    try:
        yield
    except OSError:
        if not place.exists():
            raise

"""The user's cache directory on this machine (converted models, tokens, locks), and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from train.rundir.user_cache import cache_directory

__all__ = ["NO_LOCKS", "cache_directory", "locked", "suppress_if_there"]

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of flock(2) on NFS without its lock service and on Lustre mounted without locks."""


@contextmanager
def locked(file: Path) -> Iterator[bool]:
    """Hold a lock between processes. Yields False where the file system has no locks and no process waits.

    Callers write under a unique name and rename, so two processes that make the same thing do no harm. (There, filelock
    would wait forever or leave a lock that outlives its process.)
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
    """Ignore a failed rename to `place` if another process without our lock made it first."""
    try:
        yield
    except OSError:
        if not place.exists():
            raise

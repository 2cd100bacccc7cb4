"""Errors of a place where files are written, as errors that a user can act on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import StorageError
from launcher.node import write_errors


def storage_error(error: OSError, doing: str = "cannot write") -> StorageError | None:
    """The error for the user: full disk, quota, read-only, missing directory, ...; None for errors of other kinds."""
    if isinstance(error, StorageError):
        return error
    found = write_errors.explain(error)
    if found is None:
        return None
    told = StorageError(f"{doing} {found[0]}", hint=f"{found[1]}; then run the command again")
    told.errno, told.strerror, told.filename = error.errno, write_errors.REASONS[error.errno or 0], error.filename
    return told


@contextlib.contextmanager
def written(place: Path | None = None) -> Iterator[None]:
    """Raise StorageError for an OSError of the place. Everything that writes a run directory stands in it.

    `place`: where the files are, for errors that name none: a write to an open file does not.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and place is not None:
            error.filename = str(place)
        told = storage_error(error)
        if told is None or told is error:
            raise
        raise told from error

"""Unpack what a login host sends: an archive of somebody else's making.

Only regular files and directories come out of it, under names that a run's results have, and no more of them than the
disk has room for. An archive with anything else is refused as a whole, and nothing of it is moved into the run.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from launcher.node import run_files
from launcher.rundir.foreign_files import is_of_cluster, stays_below

MOST_MEMBERS = 50_000
MOST_HEADER = 1 << 20
"""Bytes read at once. Only a header of many megabytes, which tarfile would hold in memory, asks for more."""
TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)


class _Stream:
    """A decompressed archive that ends after `room` bytes and is read in blocks of bounded size."""

    def __init__(self, source: gzip.GzipFile, room: int) -> None:
        self.source, self.room = source, room

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self.source.read(size)
        if self.source.tell() > self.room:
            raise tarfile.ReadError(f"more than {self.room} bytes")
        return data

    def seek(self, place: int) -> int:
        if place > self.room:
            raise tarfile.ReadError(f"more than {self.room} bytes")
        return self.source.seek(place)

    def tell(self) -> int:
        return self.source.tell()


def unpack_foreign(archive: IO[bytes], root: Path) -> list[str]:
    """Unpack below `root`, each file moved whole into its place, because other commands read there; return names.

    Files of a run that are no results are left out. Raises OSError, EOFError, ValueError, tarfile.TarError, zlib.error.
    """
    free = shutil.disk_usage(root).free
    with tempfile.TemporaryDirectory(dir=root, prefix=".incoming-") as folder:
        stream = _Stream(gzip.GzipFile(fileobj=archive, mode="rb"), free)
        with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload] # read, seek and tell will do
            names = _extract(tar, Path(folder), free)
        # A checkpoint counts once COMPLETE is there, so that comes last.
        for name in sorted(names, key=lambda name: name.endswith(f"/{run_files.COMPLETE}")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(folder, name), root / name)
    return names


def _extract(tar: tarfile.TarFile, folder: Path, room: int) -> list[str]:
    """Write the members that are results below `folder`; return their names."""
    names: list[str] = []
    for count, member in enumerate(tar):
        if count >= MOST_MEMBERS:
            raise tarfile.ReadError(f"more than {MOST_MEMBERS} members")
        if member.type not in TYPES or member.issparse():
            raise tarfile.ReadError(f"{member.name!r} is neither a file nor a directory")
        top = member.name.partition("/")[0]
        if top in ("", ".", "..") or not stays_below(member.name, (top,)):
            raise tarfile.ReadError(f"{member.name!r} leads out of the run directory")
        source = tar.extractfile(member) if member.isfile() and is_of_cluster(member.name) else None
        if source is None:
            continue
        room -= member.size
        if member.size < 0 or room < 0:
            raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes, which do not fit here")
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(source, file)
        if target.stat().st_size != member.size:
            raise tarfile.ReadError(f"{member.name!r} is cut off")
        names.append(member.name)
    return list(dict.fromkeys(names))

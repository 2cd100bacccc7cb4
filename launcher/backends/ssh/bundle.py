"""What travels to a host: one bundle of the run's own files, and the data files it names.

The bundle is compressed JSON and bytes, not a tar: reading a tar would cost every host an import of ten milliseconds.
Data files are found again on a host by their hash, so that they are sent there once and never for a second run.
"""

from __future__ import annotations

import json
import zlib

from launcher.node import run_files
from launcher.rundir.directory import RunDir

RUN_FILES = tuple(name for name in run_files.RENDERED if name not in (run_files.SBATCH, run_files.CODE))
"""The files of a run directory that a run on hosts needs, beside code/."""


def build(run: RunDir) -> bytes:
    """The run's files in one piece, compressed; zlib's own checksum tells a host of damage.

    The same files always give the same bytes.
    """
    code = sorted(path for path in run.code.rglob("*") if path.is_file())
    files = [run.path / name for name in RUN_FILES if (run.path / name).is_file()] + code
    blobs = [file.read_bytes() for file in files]
    index = [[file.relative_to(run.path).as_posix(), len(blob)] for file, blob in zip(files, blobs, strict=True)]
    return zlib.compress(json.dumps(index).encode() + b"\n" + b"".join(blobs), 3)

"""Pack the rendered files of a run into one bundle for its hosts.

The bundle is compressed JSON and bytes, not a tar: `import tarfile` would cost every host ten milliseconds. Input files
are not in it. A host keeps them by hash, so they are sent once and never for a second run.
"""

from __future__ import annotations

import json
import zlib

from launcher.node import run_files
from launcher.rundir.directory import RunDir

RUN_FILES = tuple(name for name in run_files.RENDERED if name not in (run_files.SBATCH, run_files.CODE))
"""The files of a run directory that a run on hosts needs, beside code/."""


def build(run: RunDir) -> bytes:
    """Pack the run's files. The same files always give the same bytes; zlib's checksum shows damage to a host."""
    code = sorted(path for path in run.code.rglob("*") if path.is_file())
    files = [run.path / name for name in RUN_FILES if (run.path / name).is_file()] + code
    blobs = [file.read_bytes() for file in files]
    index = [[file.relative_to(run.path).as_posix(), len(blob)] for file, blob in zip(files, blobs, strict=True)]
    return zlib.compress(json.dumps(index).encode() + b"\n" + b"".join(blobs), 3)

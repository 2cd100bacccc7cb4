"""Read a model's weights from the disk while libraries are still imported.

Loading maps the files and touches them page by page. Where they are not in the page cache, it waits for the disk while
the processor idles, after imports during which the disk idled.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from queue import Empty, SimpleQueue

WEIGHTS = ("*.safetensors", "*.bin")
THREADS = 4
CHUNK = 8 << 20
MOST = 0.5
"""Share of the free memory that the weights may take: more would push out other files, and then themselves."""
PROBES = 16
"""Places of a file that tell whether it is in the page cache."""


def read_ahead(directory: Path) -> list[threading.Thread]:
    """Begin to read the weights in a directory into the page cache; returns the threads that do, if any.

    posix_fadvise would need no threads, but Linux reads no more than the disk's read-ahead window per call.
    """
    found = [file for pattern in WEIGHTS for file in sorted(directory.glob(pattern)) if file.is_file()]
    if sum(file.stat().st_size for file in found) > MOST * _free_memory():
        return []
    files: SimpleQueue[Path] = SimpleQueue()
    for file in found:
        files.put(file)
    threads = [
        threading.Thread(target=_read_all, args=(files,), name="read-ahead", daemon=True)
        for _ in range(min(THREADS, len(found)))
    ]
    for thread in threads:
        thread.start()
    return threads


def _read_all(files: SimpleQueue[Path]) -> None:
    buffer = bytearray(CHUNK)
    while True:
        try:
            file = files.get_nowait()
        except Empty:
            return
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError:  # loading the model says what is wrong with it
            continue
        try:
            if not _is_cached(descriptor):
                while os.readv(descriptor, [buffer]):  # lets other threads run meanwhile
                    pass
        except OSError:
            pass
        finally:
            os.close(descriptor)


def _is_cached(descriptor: int) -> bool:
    """Whether pages all over the file are in memory. False where the file system cannot tell."""
    size = os.fstat(descriptor).st_size
    byte = bytearray(1)
    try:
        return all(os.preadv(descriptor, [byte], size * n // PROBES, os.RWF_NOWAIT) for n in range(PROBES) if size)
    except OSError:  # EAGAIN: the page would have to be read
        return False


def _free_memory() -> int:
    """Bytes that programs can still take; 0: unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return found[0] * 1024 if found else 0

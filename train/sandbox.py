"""Bounds for templates that come from others: with a model, or with somebody's job.

Jinja's sandbox keeps a template from Python's own objects, but not from a loop without end or a text of gigabytes.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_SECONDS = 4.0
"""Of CPU time for one rendering. The longest conversations seen take 0.2 s."""
MOST_MEMORY = 1 << 30
"""Bytes that one rendering may add."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Bound time and memory of a rendering. Raises TimeoutError and MemoryError.

    Signals reach the main thread only, so other threads are not bounded. Nor is the memory of a process with a CUDA
    context: its driver reserves addresses for all threads at any time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    torch = sys.modules.get("torch")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGVTALRM, _too_long)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
        if torch is None or not torch.cuda.is_initialized():
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + MOST_MEMORY
            if limits[0] == resource.RLIM_INFINITY or most < limits[0]:
                resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGVTALRM, before)


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"it takes more than {MOST_SECONDS:g} s")


def reason_of(error: Exception) -> str:
    """Why a template failed, in one printable line, with the line of the template where it is known."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:  # Jinja puts the template's lines into the traceback
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, MemoryError):
        text = f"it needs more than {MOST_MEMORY >> 30} GiB of memory"
    elif isinstance(error, RecursionError):
        text = "it nests or calls itself too deeply"
    elif isinstance(error, TimeoutError) or type(error).__module__.startswith("jinja2."):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    printable = "".join(char if char.isprintable() else " " for char in text)
    return f"{printable} (line {line} of the template)" if line else printable

"""How busy the GPUs of a node's ranks are, and how full: NVML, the driver's own library, through ctypes.

A thread takes the samples, because a driver may take its time, or never answer. NVML starts no process and holds no
memory of a GPU, and it counts GPUs by PCI address, as the ranks do (CUDA_DEVICE_ORDER).
"""

from __future__ import annotations

import ctypes
import threading
import time

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

    from .files import Json

EVERY = 2.5
"""Seconds between two samples."""
STALE = 30.0
"""Seconds after which a sample says nothing more."""
LIBRARIES = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1")


class NvmlError(Exception):
    """NVML is not there, or answers with an error."""


class _Use(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Nvml:
    """The GPUs of `ranks` ranks of this node, by local rank. Raises NvmlError."""

    def __init__(self, visible: Optional[str], ranks: int) -> None:
        """`visible`: CUDA_VISIBLE_DEVICES as the ranks have it; None: every GPU."""
        self.library = self._load()
        self._call("nvmlInit_v2")
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        every = [str(index) for index in range(count.value)]
        names = every if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
        self.handles = [self._handle(name) for name in names[:ranks]]

    def _load(self) -> Any:
        for name in LIBRARIES:
            try:
                return ctypes.CDLL(name)
            except OSError as error:
                missing = error
        raise NvmlError("no NVML on this host: %s" % missing)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            raise NvmlError("%s answers with error %d" % (name, code))

    def _handle(self, name: str) -> Any:
        handle = ctypes.c_void_p()
        if name.isdigit():
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(name)), ctypes.byref(handle))
        else:
            self._call("nvmlDeviceGetHandleByUUID", name.encode(), ctypes.byref(handle))
        return handle

    def sample(self) -> List[Json]:
        """{"local_rank", "use": percent or None, "used_bytes", "total_bytes"} of each GPU."""
        rows = []
        for local_rank, handle in enumerate(self.handles):
            memory, use = _Memory(), _Use()
            self._call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
            try:
                self._call("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(use))
                busy: Optional[int] = use.gpu
            except NvmlError:  # a MIG slice has none
                busy = None
            rows.append({"local_rank": local_rank, "use": busy, "used_bytes": memory.used, "total_bytes": memory.total})
        return rows


class GpuLoad:
    """Takes samples in a thread of its own for as long as the process lives."""

    def __init__(self, start: Callable[[], Any]) -> None:
        """`start` gives the Nvml."""
        self.rows: List[Json] = []
        self.trouble = ""
        self.at = time.monotonic()
        threading.Thread(target=self._work, args=(start,), daemon=True).start()

    def _work(self, start: Callable[[], Any]) -> None:
        try:
            source = start()
            while True:
                self.rows, self.at = source.sample(), time.monotonic()
                time.sleep(EVERY)
        except Exception as error:  # what is shown of a run must not end it
            self.rows, self.trouble = [], str(error) or type(error).__name__

    def fields(self) -> Dict[str, Any]:
        """`gpus` and `gpu_trouble` of the node's record."""
        if not self.trouble and time.monotonic() - self.at > STALE:
            return {"gpus": [], "gpu_trouble": "the driver has not answered for %d s" % (time.monotonic() - self.at)}
        return {"gpus": self.rows, "gpu_trouble": self.trouble or None}

"""Read a model's weights from the disk, and copy them to the GPU, while libraries are still imported.

Loading maps the files and touches them page by page. Where they are not in the page cache, it waits for the disk while
the processor idles, after imports during which the disk idled: `read_ahead`.

Importing transformers and PEFT keeps one processor busy for seconds, and neither the GPU nor the bus. Copies let go of
Python's lock. `EarlyWeights` copies tensors from safetensors files in threads, and `handed_to_transformers` lets
`from_pretrained` find them on the GPU where it would read them from the files; everything else that it does stays.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from train.config import TrainConfig
from train.dist import World
from train.families import FUSED_TYPES
from train.model.base import read_config
from train.model.load import torch_dtype

WEIGHTS = ("*.safetensors", "*.bin")
THREADS = 4
COPIERS = 4
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


def begin_copying(config: TrainConfig, world: World, engine: str, directory: Path) -> EarlyWeights | None:
    """Begin to copy the weights in a directory, if this rank will hold all of them as they are."""
    whole = config.train.zero_stage != 3 or not world.many
    if world.device == "cpu" or engine != "fused" or config.model.loads_quantized or not whole:
        return None
    if (read_config(directory) or {}).get("model_type") not in FUSED_TYPES:  # others are converted first
        return None
    name = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[str(torch_dtype(config)).removeprefix("torch.")]
    return EarlyWeights(directory, world.device, name)


class EarlyWeights:
    """The tensors of `dtype` in the safetensors files of a directory, on their way to a device."""

    def __init__(self, directory: Path, device: str, dtype: str) -> None:
        """`dtype`: as safetensors names it, such as BF16; tensors of others are left to transformers."""
        self.device, self.dtype = device, dtype
        self.found: dict[tuple[str, str], Future[Any]] = {}
        self._listed = threading.Event()
        self._pool = ThreadPoolExecutor(COPIERS, thread_name_prefix="early-weights")
        self._files = sorted(path.resolve() for path in directory.glob("*.safetensors"))
        threading.Thread(target=self._list, name="early-weights", daemon=True).start()

    def _list(self) -> None:
        from safetensors import safe_open

        try:
            for path in self._files:
                file: Any = safe_open(path, framework="pt", device="cpu")
                for name in file.keys():  # noqa: SIM118 - no mapping
                    if file.get_slice(name).get_dtype() == self.dtype:
                        self.found[str(path), name] = self._pool.submit(self._copy, file, name)
        except Exception:  # noqa: S110 - loading the model says what is wrong with its files
            pass
        finally:
            self._listed.set()

    def _copy(self, file: Any, name: str) -> Any:
        return file.get_tensor(name).to(self.device)

    def take(self, path: str, name: str) -> Future[Any] | None:
        self._listed.wait()
        return self.found.pop((path, name), None)

    def close(self) -> None:
        """Forget what nobody took."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.found.clear()


class _Slice:
    """A tensor that is being copied, as safetensors' own slices are used: `slice[...]`."""

    def __init__(self, plain: Any, copied: Future[Any]) -> None:
        self.plain, self.copied = plain, copied

    def __getitem__(self, index: Any) -> Any:
        try:
            whole = self.copied.result()
        except Exception:  # no memory, a damaged file: the usual way says so
            return self.plain[index]
        return whole[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


class _File:
    """safetensors' open file, but for the tensors that are taken from `early`."""

    def __init__(self, plain: Any, path: str, early: EarlyWeights) -> None:
        self.plain, self.path, self.early = plain, path, early

    def get_slice(self, name: str) -> Any:
        copied, plain = self.early.take(self.path, name), self.plain.get_slice(name)
        return plain if copied is None else _Slice(plain, copied)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def __enter__(self) -> Any:
        return self.plain.__enter__()

    def __exit__(self, *raised: object) -> Any:
        return self.plain.__exit__(*raised)


@contextmanager
def handed_to_transformers(early: EarlyWeights | None) -> Iterator[None]:
    """Let from_pretrained take its tensors from `early`. Where transformers reads files otherwise, it goes on so."""
    from transformers import modeling_utils

    names = ("safe_open", "caching_allocator_warmup")
    if early is None or not all(hasattr(modeling_utils, name) for name in names):
        yield
        return
    opened, warmed = (getattr(modeling_utils, name) for name in names)

    def open_file(path: Any, *arguments: Any, **options: Any) -> Any:
        return _File(opened(path, *arguments, **options), str(Path(path).resolve()), early)

    modeling_utils.safe_open = open_file
    modeling_utils.caching_allocator_warmup = lambda *_: None  # would allocate all weights a second time
    try:
        yield
    finally:
        modeling_utils.safe_open, modeling_utils.caching_allocator_warmup = opened, warmed
        early.close()

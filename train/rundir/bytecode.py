"""Bytecode of libraries, kept in the user's cache where Python keeps none.

Python writes the bytecode of a module beside its source. It does not where PYTHONDONTWRITEBYTECODE is set, as in many
container images, or where the user cannot write to the installation. Every process then compiles torch, transformers
and PEFT again: 3,400 modules, two thirds of the time to the first step of a small model.

`keep` makes imports read and write such bytecode in `$ZLAUNCH_CACHE/bytecode`. What Python finds beside the source or
under PYTHONPYCACHEPREFIX is used as before. Our own modules are left alone: each run has a copy of them, whose bytecode
nobody would use again.
"""

from __future__ import annotations

import marshal
import os
import sys
import threading
import zlib
from contextlib import suppress
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash
from pathlib import Path
from types import CodeType
from typing import Any

from train.rundir.user_cache import cache_directory

OURS = tuple(f"{Path(__file__).absolute().parents[2]}{os.sep}{name}{os.sep}" for name in ("train", "node", "launcher"))
"""Where our own modules lie: in code/ of a run, or in a checkout."""


def keep() -> None:
    """Keep the bytecode of modules that are imported from now on. Does nothing where the cache cannot be written."""
    if sys.pycache_prefix is not None or any(getattr(hook, "keeps_bytecode", False) for hook in sys.path_hooks):
        return
    try:
        place = cache_directory().absolute() / "bytecode"
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: Path.home() of a user without one
        return
    sys.path_hooks.insert(0, _hook(str(place)))
    sys.path_importer_cache.clear()


def _hook(place: str) -> Any:
    """A path hook like Python's own for directories, but for the loader of sources."""

    class Loader(SourceFileLoader):
        compiled: bytes | None = None
        """The source, if this loader had to compile it."""

        def get_code(self, fullname: str) -> CodeType | None:
            if self.path.startswith(OURS):
                return super().get_code(fullname)
            kept = place + cache_from_source(os.path.abspath(self.path))
            code = _read(kept, self.path)
            if code is None:
                code = super().get_code(fullname)
                if code is not None and self.compiled is not None and not _python_keeps(self.path):
                    _write(kept, self.compiled, code)
            self.compiled = None
            return code

        def source_to_code(self, data: Any, path: Any, *more: Any, **options: Any) -> CodeType:  # type: ignore[override]
            self.compiled = bytes(data)
            code: CodeType = super().source_to_code(data, path, *more, **options)
            return code

    hook = FileFinder.path_hook(
        (ExtensionFileLoader, EXTENSION_SUFFIXES), (Loader, SOURCE_SUFFIXES), (SourcelessFileLoader, BYTECODE_SUFFIXES)
    )
    hook.keeps_bytecode = True  # type: ignore[attr-defined]
    return hook


def _python_keeps(source: str) -> bool:
    """Whether Python writes the bytecode of this source itself."""
    beside = os.path.dirname(cache_from_source(source))
    return not sys.dont_write_bytecode and os.access(
        beside if os.path.isdir(beside) else os.path.dirname(source), os.W_OK
    )


def _header(source: bytes, code: bytes) -> bytes:
    """What bytecode must have before it to be used: Python's version, the content of its source, and its own.

    Times and sizes, Python's default, are not enough: two images may have different versions of a module in one place,
    of the same size and with normalized times.
    """
    return MAGIC_NUMBER + source_hash(source) + zlib.crc32(code).to_bytes(4, "little")


def _read(kept: str, source: str) -> CodeType | None:
    try:
        with open(kept, "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():  # several users may share a cache, but not their code
                return None
            data = file.read()
        with open(source, "rb") as file:
            header = _header(file.read(), code := data[16:])
    except OSError:
        return None
    return marshal.loads(code) if data[:16] == header else None  # noqa: S302 - from the user's own cache


def _write(kept: str, source: bytes, code: CodeType) -> None:
    """Write a file whole or not at all."""
    data = marshal.dumps(code)
    temporary = f"{kept}.{os.getpid()}.{threading.get_ident()}"
    try:
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(_header(source, data) + data)
        os.replace(temporary, kept)
    except OSError:  # the next process compiles it again
        with suppress(OSError):
            os.unlink(temporary)

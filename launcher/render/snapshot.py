"""The copy of the training program and the agent that a run starts from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path


def snapshot_code(code: Path, sources: Mapping[str, Path]) -> None:
    """Replace the directory `code` with `sources` (name in it -> file or package directory).

    The files are copied as they are now, with uncommitted changes.
    """
    shutil.rmtree(code, ignore_errors=True)  # a resumed run must not keep deleted modules
    for name, source in sorted(sources.items()):
        files = (
            [source] if source.is_file() else sorted(p for p in source.rglob("*.py") if "__pycache__" not in p.parts)
        )
        for file in files:
            relative = Path(name) if source.is_file() else Path(name) / file.relative_to(source)
            target = code / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def compile_code(package: Path) -> None:
    """Compile a copied package, so that hosts with the same Python need not. Another Python ignores the files.

    UNCHECKED_HASH keeps them valid if the source files have other times on the host.
    """
    import py_compile

    for file in sorted(package.rglob("*.py")):
        py_compile.compile(
            str(file), dfile=str(file.relative_to(package.parent)), doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )  # fmt: skip

"""The launcher's side of a start: the far end's modules in one block of bytes, and the code that receives them."""

from __future__ import annotations

import functools
import importlib.util
import marshal
import sys
from importlib.abc import InspectLoader
from pathlib import Path
from typing import Any, cast

BOOT = (Path(__file__).parent / "boot.py").read_text(encoding="utf-8")
"""For `python -S -c`. -S skips the packages of the host's Python: the far end wants none of them."""
_ROOM = "launcher.node"
_MODULES = (
    "", ".files", ".processes", ".addresses", ".census", ".run_files",
    ".farend", ".farend.common", ".farend.host", ".farend.network", ".farend.store", ".farend.runs", ".farend.__main__",
)  # fmt: skip
"""Below `launcher.node`, in the order of their imports. On a host the package is `node`."""


def build_payload(greeting: str, tag: str = sys.implementation.cache_tag or "") -> bytes:
    """What `BOOT` reads. The far end says `greeting` once it has started; `tag` is the kind of our bytecode."""
    code, text = _modules()
    return f"{tag} {greeting} {len(code)} {len(text)}\n".encode() + code + text


@functools.cache
def _modules() -> tuple[bytes, bytes]:
    """(module, content) twice: as bytecode, which Python has on disk already, and as text, in marshal's old format.

    Bytecode is for hosts whose Python is the launcher's: compiling the text takes longer than all that the host does.
    """
    code: list[tuple[str, Any]] = []
    text: list[tuple[str, str]] = []
    for name in _MODULES:
        loader = importlib.util.find_spec(_ROOM + name).loader  # type: ignore[union-attr] # the module is ours
        code.append(("node" + name, cast(InspectLoader, loader).get_code(_ROOM + name)))
        text.append(("node" + name, cast(InspectLoader, loader).get_source(_ROOM + name) or ""))
    return marshal.dumps(code), marshal.dumps(text, 2)

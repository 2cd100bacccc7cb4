"""The launcher's side of a start: the far end's modules in one block of bytes, and the code that receives them."""

from __future__ import annotations

import functools
import importlib.util
import marshal
import sys
from importlib.abc import InspectLoader
from pathlib import Path
from typing import Any, cast

HELLO = (
    'import sys;s=[sys.argv[1]]+[str(n) for n in sys.version_info[:2]]+[str(getattr(sys,"implementation",sys).__dict__'
    '.get("cache_tag"))];sys.stdout.write(chr(10)+chr(32).join(s)+chr(10));sys.stdout.flush();'
    "exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
)
"""For `python -S -c HELLO GREETING`: say `GREETING MAJOR MINOR TAG` on a line of its own, then run what comes.

-S skips the packages of the host's Python: the far end wants none of them. Every shell must read this text as one word
in single quotes, csh and fish too: it has no line end, single quote, backslash or `!`. Every Python must say hello, so
that one which is too old can be named.
"""
OLDEST = (3, 8)
_BOOT = (Path(__file__).parent / "boot.py").read_text(encoding="utf-8").encode()
_ROOM = "launcher.node"
_MODULES = (
    "", ".files", ".processes", ".addresses", ".census", ".run_files", ".write_errors",
    ".farend", ".farend.common", ".farend.host", ".farend.network", ".farend.store", ".farend.runs", ".farend.agents",
    ".farend.__main__",
)  # fmt: skip
"""Below `launcher.node`, in the order of their imports. On a host the package is `node`."""


def build_payload(tag: str) -> bytes:
    """Return what to send to a Python that has said hello, by its cache tag."""
    code, text = _modules()
    modules = code if tag == sys.implementation.cache_tag else text
    return b"%d\n%s%d\n%s" % (len(_BOOT), _BOOT, len(modules), modules)


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

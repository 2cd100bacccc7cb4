"""The first code on a host: receive the modules of the far end on standard input, then start it.

The launcher passes this text to `python -S -c` (`payload.py`). The input is one line, `TAG GREETING CODE_SIZE
TEXT_SIZE`, and two dictionaries {module: content} in marshal's format: bytecode for a Python whose tag is TAG, and text
for any other. Python 3.6 must be able to parse this file, to say that it is too old; Python 2 says `SyntaxError`.
"""

import sys

if sys.version_info < (3, 8):
    sys.exit("Python 3.8 or newer is needed, this is %d.%d" % sys.version_info[:2])

import gc
import marshal
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, BinaryIO


class Received:
    """Imports the modules that came over the channel."""

    def __init__(self, modules: "dict[str, Any]") -> None:
        self.modules = modules

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        if name not in self.modules:
            return None
        is_package = any(other.startswith(name + ".") for other in self.modules)
        return ModuleSpec(name, self, is_package=is_package)  # type: ignore[arg-type] # importlib.abc imports typing

    def create_module(self, spec: object) -> None:
        """The default: an empty module."""

    def exec_module(self, module: "ModuleType") -> None:
        content = self.modules[module.__name__]
        code = compile(content, module.__name__, "exec") if isinstance(content, str) else content
        exec(code, module.__dict__)


def receive(channel: "BinaryIO") -> "tuple[dict[str, Any], str]":
    """(modules in the form that suits this Python, greeting)."""
    tag, greeting, code_size, text_size = channel.readline().decode().split()
    code, text = channel.read(int(code_size)), channel.read(int(text_size))
    return marshal.loads(code if tag == sys.implementation.cache_tag else text), greeting


gc.disable()  # a short life with few cycles
sys.path[:] = [folder for folder in sys.path if folder]  # modules of the login directory are not wanted
modules, greeting = receive(sys.stdin.buffer)
sys.meta_path.insert(0, Received(modules))

from node.farend.__main__ import main  # type: ignore[import-not-found]

main(greeting)

"""The first code on a host: receive the modules of the far end on standard input, then start it.

The launcher passes this text to `python -S -c` (`payload.py`). The input is one line, `TAG GREETING CODE_SIZE
TEXT_SIZE`, and two lists of (module, content) in marshal's format: bytecode for a Python whose tag is TAG, and text for
any other. Python 3.6 must be able to parse this file, to say that it is too old; Python 2 says `SyntaxError`.
"""

import sys

if sys.version_info < (3, 8):
    sys.exit("Python 3.8 or newer is needed, this is %d.%d" % sys.version_info[:2])

sys.path[:] = [folder for folder in sys.path if folder]  # modules of the login directory are not wanted

import gc
import marshal
from types import ModuleType

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import BinaryIO


def receive(channel: "BinaryIO") -> str:
    """Import the modules that come over the channel, in their order. Returns the greeting."""
    tag, greeting, code_size, text_size = channel.readline().decode().split()
    code, text = channel.read(int(code_size)), channel.read(int(text_size))
    for name, content in marshal.loads(code if tag == sys.implementation.cache_tag else text):
        module = sys.modules[name] = ModuleType(name)
        module.__package__ = name if name in ("node", "node.farend") else name.rpartition(".")[0]
        exec(compile(content, name, "exec") if isinstance(content, str) else content, module.__dict__)
    return greeting


gc.disable()  # a short life with few cycles
greeting = receive(sys.stdin.buffer)
sys.modules["node.farend.__main__"].main(greeting)

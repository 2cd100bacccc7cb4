"""The second code on a host: receive the modules of the far end on standard input, then start it.

`HELLO` of payload.py has said hello before and runs this text. The input is a line with a size and a list of
(module, content) in marshal's format: bytecode where this Python's tag is the launcher's, text elsewhere.
"""

import sys

sys.path[:] = [folder for folder in sys.path if folder]  # modules of the login directory are not wanted

import gc
import marshal
from types import ModuleType

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import BinaryIO


def receive(channel: "BinaryIO") -> None:
    """Import the modules that come over the channel, in their order."""
    for name, content in marshal.loads(channel.read(int(channel.readline()))):  # noqa: S302 - from the launcher
        module = sys.modules[name] = ModuleType(name)
        module.__package__ = name if name in ("node", "node.farend") else name.rpartition(".")[0]
        exec(compile(content, name, "exec") if isinstance(content, str) else content, module.__dict__)  # noqa: S102


gc.disable()  # a short life with few cycles
receive(sys.stdin.buffer)
sys.modules["node.farend.__main__"].main()

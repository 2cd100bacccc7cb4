"""The conversation: requests on standard input, answers on standard output, one operation each.

A request is a line of JSON {"op", "payload": number of bytes, ...} and its payload; an answer is a line
{"ok": true, "payload": n, ...} or {"ok": false, "error": text} and its payload. The host may know all of it: secrets
come in a payload only and go to the agent's standard input.
"""

from __future__ import annotations

import json
import os
import sys

from ..write_errors import explain
from .agents import start
from .common import TEXT, Refused
from .host import hello, image, remove_own_mark, shared_dir_marks
from .network import listen, probe_peers, reach, unlisten
from .runs import leftovers, poll_node, remove_run, send_signal, unpack
from .store import find_inputs, get, put, store_input, tree

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import BinaryIO, Callable, Dict, Optional

    from ..files import Json

OPERATIONS: Dict[str, Callable[..., Json]] = {
    operation.__name__: operation
    for operation in (
        hello, image, shared_dir_marks, listen, unlisten, reach, probe_peers, find_inputs, store_input, tree, get, put,
        unpack, start, poll_node, send_signal, leftovers, remove_run,
    )
}  # fmt: skip


def converse(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until the launcher hangs up."""
    for line in iter(source.readline, b""):
        answer = carry_out(json.loads(line.decode()), source)
        if answer is None:
            break
        payload = answer.pop("payload", b"")
        sink.write(json.dumps({**answer, "payload": len(payload)}).encode() + b"\n" + payload)
        sink.flush()
    remove_own_mark()


def carry_out(request: Json, source: BinaryIO) -> Optional[Json]:
    """The answer to one request; None: the launcher hung up within its payload."""
    operation, size = OPERATIONS[request.pop("op")], request.pop("payload", 0)
    if operation is store_input:
        request["source"] = source  # the operation reads it itself, because it may exceed memory
    else:
        request["payload"] = source.read(size)
        if len(request["payload"]) < size:
            return None  # half of a file or of the secrets is worse than nothing
    umask = os.umask(0o077)  # what an operation makes is for this user only
    if operation is start:
        os.umask(umask)  # but the program of the user keeps the user's
    try:
        return {**operation(**request), "ok": True}
    except Refused as error:
        return {"ok": False, "error": str(error)[:TEXT]}
    except OSError as error:
        where = " (%s)" % error.filename if error.filename else ""
        found = explain(error)
        text = "%s; %s" % found if found else "%s%s" % (error.strerror or error, where)
        return {"ok": False, "error": text[:TEXT]}
    except Exception as error:  # a bug of ours: without an answer it would stay hidden
        return {"ok": False, "error": ("%s failed: %r" % (operation.__name__, error))[:TEXT]}
    finally:
        os.umask(umask)


def main() -> None:
    """Answer the launcher on standard output, which nothing else may write to."""
    with open(os.dup(1), "wb") as sink:
        os.dup2(2, 1)  # an environment's sitecustomize may print
        converse(sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()

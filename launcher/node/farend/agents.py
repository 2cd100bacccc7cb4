"""Start a run's agent on this host: fork it from this process, or run the job's own node.sh."""

from __future__ import annotations

import os
import select
import signal
import sys

from ..processes import show_command, spawn, take_streams, wait_for_child
from .common import Refused
from .host import remove_own_mark
from .runs import read_record

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Dict, List, Optional, Tuple

    from ..files import Json

AGENT = os.path.join("code", "node", "agent", "__main__.py")
LAST_SECONDS = 5.0
"""For an agent that has closed its pipe to end."""


def start(
    run_dir: str, node_rank: int, environ: Dict[str, str], own_script: bool, seconds: float, payload: Any, **_: Any
) -> Json:
    """Start this node's agent, detached. The payload, the secrets, is its standard input. Returns its record.

    The agent is a fork of this process, which is the interpreter that node.sh would start, in its environment. That
    spares a host a bash and a Python. `own_script`: the job has a node.sh of its own, so that is run. Raises Refused.
    """
    remove_own_mark()
    # PYTHONUTF8 was for the far end itself (launcher/remote/session.py).
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SSH_", "PYTHONUTF8"))}
    environ = {**clean, **environ}
    if own_script:
        words = ["bash", os.path.join(run_dir, "node.sh"), str(node_rank), "--secrets-stdin", "--detach"]
        status, output = run(words, environ, payload, seconds)
    else:
        status, output = fork_agent(run_dir, node_rank, environ, payload, seconds)
    if status is None:
        raise Refused("%s did not start the agent within %g s" % ("node.sh" if own_script else "Python", seconds))
    record = read_record(run_dir, node_rank)
    if status != 0 or record is None:
        lines = [line for line in output.decode("utf-8", "replace").splitlines() if line.strip()][-5:]
        raise Refused("the agent did not start: %s" % ("; ".join(lines) or "wait status %s" % status))
    return {"record": record}


def fork_agent(
    run_dir: str, node_rank: int, environ: Dict[str, str], stdin: bytes, seconds: float
) -> Tuple[Optional[int], bytes]:
    """Start the agent as a fork of this process; return (0, nothing) once it is up, else as `run` does."""
    given, output = memory_file(stdin), memory_file()
    reader, writer = os.pipe()  # the agent says there that it is up, or why not
    pid = os.fork()
    if pid == 0:
        become_agent(run_dir, node_rank, environ, [given, output, output], writer)
    os.close(writer)
    try:
        if not select.select([reader], [], [], seconds)[0]:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, b""
        word = os.read(reader, 65536)
        if word == b"ok":
            return 0, b""
        status = wait_for_child(pid, LAST_SECONDS)
        return status or 1 << 8, word or os.pread(output, os.fstat(output).st_size, 0)
    finally:
        for number in (given, output, reader):
            os.close(number)


def become_agent(run_dir: str, node_rank: int, environ: Dict[str, str], streams: List[int], ready: int) -> None:
    """Turn the forked child into the agent, as node.sh's last line would. Never returns."""
    code = 1
    try:
        os.setsid()
        take_streams(streams, [ready])
        os.chdir(run_dir)
        os.environ.clear()
        os.environ.update(environ)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the far end's has read ahead
        sys.argv = [AGENT, "--run-dir", ".", "--node-rank", str(node_rank), "--secrets-stdin", "--ready-fd", str(ready)]
        show_command([sys.executable, "-X", "utf8", "-S", *sys.argv])
        run_file(AGENT)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def run_file(path: str) -> None:
    """Run a file as Python's main program, with the modules of the run instead of the launcher's of now.

    What both need of the standard library is imported already. (`runpy` would do the same for 3 ms.)
    """
    ours: Dict[str, ModuleType] = {
        name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "node"
    }
    sys.path.insert(0, os.path.dirname(path))
    with open(path, "rb") as file:
        program = compile(file.read(), path, "exec")
    exec(program, {"__name__": "__main__", "__file__": path, "__ours__": ours})  # noqa: S102 - of the run's own directory


def run(argv: List[str], environ: Dict[str, str], stdin: bytes, seconds: float) -> Tuple[Optional[int], bytes]:
    """Run a program in its own session; return (wait status, output). Status None: killed after `seconds`.

    Input and output are files in memory, so that no pipe can block.
    """
    given, output = memory_file(stdin), memory_file()
    try:
        try:
            pid = spawn(argv, "/", environ, given, output)
        except OSError as error:
            return 127 << 8, ("%s: %s" % (argv[0], error.strerror)).encode()
        status = wait_for_child(pid, seconds)
        if status is None:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return status, os.pread(output, os.fstat(output).st_size, 0)
    finally:
        os.close(given)
        os.close(output)


def memory_file(content: bytes = b"") -> int:
    """The descriptor of a file in memory, to be read from its start."""
    number = os.memfd_create("zlaunch")
    with open(number, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(number, 0, os.SEEK_SET)
    return number

"""Programs forked from one process that has imported everything: a start takes one second instead of ten.

The process reads one request per line. A group of ranks is answered with their pids, then with their exit statuses.
Like the agent, the process ends the whole group once a rank has failed. Here the others may continue for `grace`
seconds. Any other program of Python is answered with its pid; a further request waits for its end.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from tests.beds.places import ROOT

IMPORTED = (
    *("deepspeed", "peft", "safetensors.torch", "transformers.models.llama.modeling_llama"),
    *("train.evaluate", "train.data.dataset", "train.model.adapt", "train.model.base", "train.model.load"),
    *("train.training.adapter", "train.training.loop", "train.training.strategy"),
)
SAVING = "/checkpoints/.step-"
"""Part of the name of the directory that a save creates first."""


class Forkserver:
    """The process as tests see it; a context manager that leaves nothing running."""

    def __init__(self, *first: str, **env: str) -> None:
        """`first`: modules to import before all others."""
        self.process = subprocess.Popen(
            [sys.executable, __file__, *first],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._group: list[int] = []

    def start(self, run: Path, world_size: int, *, before: dict[str, Any] | None = None, grace: float = 0) -> list[int]:
        """The pids of the ranks of a run. `before`: see `die_before`; their output goes to `ranks.log`."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        asked = {"run": str(run), "world_size": world_size, "port": port, "before": before, "grace": grace}
        self._end_group()
        self._group = self._ask(asked)
        return self._group

    def wait(self) -> list[int]:
        """The exit statuses of the group that was started last; -9 for a rank that was killed."""
        self._group = []
        return self._answer()

    def start_program(self, argv: list[str], env: dict[str, str], output: Path) -> int:
        """The pid of `python ARGV`, with this environment, its output in a file."""
        self._end_group()
        (pid,) = self._ask({"argv": argv, "env": env, "output": str(output), "cwd": os.getcwd()})
        return pid

    def wait_for_program(self, pid: int, timeout: float) -> int | None:
        """The exit status of a program; None if it still runs after `timeout` seconds."""
        return next(iter(self._ask({"pid": pid, "timeout": timeout})), None)

    def _end_group(self) -> None:
        """End a group that a failed test did not wait for."""
        if self._group:
            for pid in self._group:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.wait()

    def _ask(self, asked: dict[str, Any]) -> list[int]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> list[int]:
        assert self.process.stdout is not None
        answer: list[int] = json.loads(self.process.stdout.readline())
        return answer

    def __enter__(self) -> Forkserver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@functools.cache
def shared(*first: str) -> Forkserver:
    """The process that all tests of this process share. Unsloth has its own, because it patches transformers."""
    cache = tempfile.TemporaryDirectory(prefix="zlaunch-forked-", ignore_cleanup_errors=True)
    server = Forkserver(*first, ZLAUNCH_CACHE=cache.name)
    atexit.register(lambda: (server.__exit__(None, None, None), cache.cleanup()))
    return server


def die_before(call: str, path: str, times: int) -> None:
    """Make this process kill itself just before its n-th audited call (`os.rename` and others).

    `path` is a pattern that the path of the call must contain; for a rename, the new path. Counting starts with the
    first save.
    """
    wanted, left, saving = re.compile(path), times, False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left, saving
        saving = saving or (event == "os.mkdir" and SAVING in str(arguments[0]))
        if saving and event == call and wanted.search(str(arguments[1 if event == "os.rename" else 0])):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def rank(asked: dict[str, Any], number: int) -> NoReturn:
    """The child: one rank, from its command line to its exit status."""
    from train.__main__ import main

    size = str(asked["world_size"])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(asked["port"])}
    os.environ |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "RANK": str(number), "LOCAL_RANK": str(number)}
    log = os.open(f"{asked['run']}/ranks.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if number == 0 and asked["before"]:
        die_before(**asked["before"])
    status = 70
    try:
        status = main(["--config", f"{asked['run']}/train.json"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def program(asked: dict[str, Any]) -> None:
    """The child: what `python ARGV` does, without its imports."""
    os.environ.clear()
    os.environ |= asked["env"]
    os.chdir(asked["cwd"])
    null, output = os.open(os.devnull, os.O_RDONLY), os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, target in enumerate((null, output, output)):
        os.dup2(target, number)
    warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning, "runpy")
    kind, *sys.argv = asked["argv"]
    sys.path[0] = asked["cwd"]
    if kind == "-m":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(sys.argv[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv.insert(0, kind)
        runpy.run_path(kind, run_name="__main__")


def end_of(pid: int, timeout: float) -> list[int]:
    """The exit status of a child; empty if it still runs after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return [os.waitstatus_to_exitcode(status)]
        if time.monotonic() > end:
            return []
        time.sleep(0.005)


def group(asked: dict[str, Any], tell: Callable[[list[int]], None]) -> None:
    pids = []
    for number in range(asked["world_size"]):
        pid = os.fork()
        if pid == 0:
            rank(asked, number)
        pids.append(pid)
    tell(pids)
    statuses: dict[int, int] = {}
    deadline = float("inf")
    while len(statuses) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            statuses[pid] = os.waitstatus_to_exitcode(status)
            if statuses[pid]:
                deadline = min(deadline, time.monotonic() + asked["grace"])
        elif time.monotonic() < deadline:
            time.sleep(0.001)
        else:
            for other in set(pids) - set(statuses):
                os.kill(other, signal.SIGKILL)
    tell([statuses[pid] for pid in pids])


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep what a library prints out of the answers
    from train import dist

    dist.prepare(dist.from_environment("cpu"))  # what libraries read when they are imported
    for module in (*sys.argv[1:], *IMPORTED):
        importlib.import_module(module)
    gc.freeze()  # otherwise every child's first garbage collection copies what it shares with this process
    for line in sys.stdin:
        asked = json.loads(line)
        if "run" in asked:
            group(asked, lambda numbers: print(json.dumps(numbers), file=answers, flush=True))
            continue
        if "pid" in asked:
            numbers = end_of(asked["pid"], asked["timeout"])
        elif not (child := os.fork()):
            program(asked)
            break
        else:
            numbers = [child]
        print(json.dumps(numbers), file=answers, flush=True)

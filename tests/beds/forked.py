"""Groups of ranks forked from one process that has imported everything: a start takes one second instead of ten.

The process reads one request per line and answers with the pids of the ranks, then with their exit statuses. Like the
agent, it ends the whole group once a rank has failed. Here the others may continue for `grace` seconds.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
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

    def start(self, run: Path, world_size: int, *, before: dict[str, Any] | None = None, grace: float = 0) -> list[int]:
        """The pids of the ranks of a run. `before`: see `die_before`; their output goes to `ranks.log`."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        asked = {"run": str(run), "world_size": world_size, "port": port, "before": before, "grace": grace}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def wait(self) -> list[int]:
        """The exit statuses of the group that was started last; -9 for a rank that was killed."""
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
    os.environ["DS_ACCELERATOR"] = "cpu"
    for module in (*sys.argv[1:], *IMPORTED):
        importlib.import_module(module)
    gc.freeze()  # otherwise every child's first garbage collection copies what it shares with this process
    for line in sys.stdin:
        group(json.loads(line), lambda numbers: print(json.dumps(numbers), file=answers, flush=True))

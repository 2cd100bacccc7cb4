"""Start ranks with torchrun's environment, and read what their runs left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

from launcher.rundir.jsonl import read_jsonl
from tests.beds import forked
from tests.beds.places import ROOT

WORKER = Path(__file__).with_name("worker.py")


class Ranks:
    """Programs of Python with torchrun's environment, forked from a process that has imported torch already.

    `wait` returns their exit statuses and keeps their output.
    """

    def __init__(self, world_size: int, argv: list[str], *, first: tuple[str, ...] = (), **env: str) -> None:
        """`first`: modules that must be imported before all others."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            **env,
        }
        self._place = tempfile.TemporaryDirectory(prefix="ranks-")
        self._files = [Path(self._place.name, str(rank)) for rank in range(world_size)]
        self._server = forked.shared(*first)
        self._pids = [
            self._server.start_program(argv, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, file)
            for rank, file in enumerate(self._files)
        ]
        self.output: list[str] = []

    def wait(self, timeout: float = 300) -> list[int | None]:
        """The exit statuses; None for a rank that did not end in time, and was killed."""
        statuses = [self._server.wait_for_program(pid, timeout) for pid in self._pids]
        for pid, status in zip(self._pids, statuses, strict=True):
            if status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._server.wait_for_program(pid, timeout)
        self.output = [file.read_text(encoding="utf-8") for file in self._files]
        self._place.cleanup()
        return statuses


def train(*runs: Path, world_size: int = 1, expect: int = 0, first: tuple[str, ...] = (), **env: str) -> list[str]:
    """Train several runs one after another in the same processes; the output of each rank."""
    ranks = Ranks(world_size, [str(WORKER), *map(str, runs)], first=first, **env)
    statuses = ranks.wait()
    assert statuses == [expect] * world_size, "\n".join(ranks.output)
    return ranks.output


def tools(
    place: Path, *commands: tuple[str, list[str]], stdin: str = "", first: tuple[str, ...] = (), **env: str
) -> list[tuple[int, str]]:
    """(exit status, output) of commands such as ("train.export", [...]), run one after another in one process.

    `stdin` is the standard input of each of them.
    """
    file = place / "commands.json"
    file.write_text(json.dumps([(*command, stdin) for command in commands]), encoding="utf-8")
    ranks = Ranks(1, [str(WORKER.with_name("tools.py")), str(file)], first=first, **env)
    assert ranks.wait(timeout=500) == [0], ranks.output[0]
    answer = json.loads(ranks.output[0].splitlines()[-1])
    return list(zip(answer["status"], answer["output"], strict=True))


def metrics(run: Path, key: str = "loss") -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line[key] for line in lines if key in line]


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def events(run: Path, name: str) -> list[dict[str, Any]]:
    """Also of a run that writes to the file right now, or was killed while it did."""
    return [line for line in read_jsonl(run / "events.jsonl") if line["event"] == name]

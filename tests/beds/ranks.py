"""Start ranks with torchrun's environment, and read what their runs left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.beds.places import ROOT

WORKER = Path(__file__).with_name("worker.py")


class Ranks:
    """Processes with torchrun's environment. `wait` returns their exit statuses and keeps their output."""

    def __init__(self, world_size: int, argv: list[str], **env: str) -> None:
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
        self.processes = [
            subprocess.Popen(
                [sys.executable, *argv],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world_size)
        ]
        self.output: list[str] = []

    def wait(self, timeout: float = 300) -> list[int]:
        try:
            self.output = [process.communicate(timeout=timeout)[0] for process in self.processes]
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        return [process.returncode for process in self.processes]


def train(*runs: Path, world_size: int = 1, expect: int = 0, **env: str) -> list[str]:
    """Train several runs one after another in the same processes; the output of each rank."""
    ranks = Ranks(world_size, [str(WORKER), *map(str, runs)], **env)
    statuses = ranks.wait()
    assert statuses == [expect] * world_size, "\n".join(ranks.output)
    return ranks.output


def tools(place: Path, *commands: tuple[str, list[str]], stdin: str = "", **env: str) -> list[tuple[int, str]]:
    """(exit status, output) of commands such as ("train.export", [...]), run one after another in one process.

    `stdin` is the standard input of each of them.
    """
    file = place / "commands.json"
    file.write_text(json.dumps([(*command, stdin) for command in commands]), encoding="utf-8")
    ranks = Ranks(1, [str(WORKER.with_name("tools.py")), str(file)], **env)
    assert ranks.wait(timeout=500) == [0], ranks.output[0]
    answer = json.loads(ranks.output[0].splitlines()[-1])
    return list(zip(answer["status"], answer["output"], strict=True))


def metrics(run: Path, key: str = "loss") -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line[key] for line in lines if key in line]


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def events(run: Path, name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == name]

"""Run directories and real agents for tests: small programs as ranks, several nodes on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.machine import installation
from launcher.node import processes
from launcher.node.agent.launch import table_without

FAST = {"stop_deadline": 5.0, "kill_after": 0.5, "heartbeat_timeout": 10.0, "start_timeout": 20.0}
PATIENCE = 20.0

UNTIL_STOP = "while [ ! -e control/stop ]; do sleep 0.05; done; exit 75"
"""A cooperative program: on request it ends with the exit status of a saved checkpoint."""
FOREVER = "exec sleep 300"
IGNORES_TERM = "trap '' TERM INT; while :; do sleep 0.1; done"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(condition: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"did not happen within {timeout} s: {condition}")


def copy_agent(code: Path) -> None:
    """Copy the agent into the `code/` of a run directory, as the launcher does."""
    for name, source in installation.agent_sources().items():
        for file in [source] if source.is_file() else source.glob("*.py"):
            target = code / name if source.is_file() else code / name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


class Run:
    """One run: a directory (or one per node, unshared) and the agents started on it."""

    def __init__(self, root: Path, nodes: list[int], program: str | list[str], *, shared: bool, launch: Any) -> None:
        self.run_id = f"test-{uuid.uuid4().hex[:12]}"
        self.path = root / self.run_id
        self.dirs = [self.path] * len(nodes) if shared else [self.path / f"host{n}" for n in range(len(nodes))]
        self.agents: dict[int, subprocess.Popen[bytes]] = {}
        rows = [{"node_rank": r, "host": f"host{r}", "procs": procs} for r, procs in enumerate(nodes)]
        argv = ["/bin/sh", "-c", program] if isinstance(program, str) else program
        self.launch = {
            **{"run_id": self.run_id, "backend": "local", "nodes": table_without(rows, set()), "token": "t0ken"},
            **{"world_size": sum(nodes), "device": "cpu", "master_addr": "127.0.0.1", "cwd": None, "secrets": []},
            **{"master_port": free_port(), "control_port": free_port(), "argv": argv, "env": {}},
            **FAST,
            **launch,
        }
        for path in set(self.dirs):
            copy_agent(path / "code")
            self.write(path, "plan.json", {"schema": 1, "launch": self.launch})

    def write(self, path: Path, name: str, value: Any) -> None:
        (path / name).write_text(json.dumps(value))

    def start(self, *, only: list[int] | None = None, env: dict[str, str] | None = None) -> Run:
        for rank in range(len(self.dirs)) if only is None else only:
            argv = [sys.executable, "code/node/agent", "--run-dir", ".", "--node-rank", str(rank)]
            self.agents[rank] = subprocess.Popen(
                argv, cwd=self.dirs[rank], env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL
            )
        return self

    def wait(self, timeout: float = PATIENCE) -> list[int]:
        return [process.wait(timeout) for _, process in sorted(self.agents.items())]

    def go(self, **options: Any) -> int:
        return self.start(**options).wait()[0]

    def signal(self, node: int, signum: int = signal.SIGTERM) -> None:
        """Signal the agent, by its record."""
        os.kill(self.record(node)["pid"], signum)

    def record(self, node: int = 0) -> Any:
        return json.loads((self.dirs[node] / "nodes" / f"node-{node}.json").read_text())

    def events(self, name: str, node: int = 0) -> list[Any]:
        file = self.dirs[node] / "events.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line["event"] == name and line["node"] == node]

    def log(self, rank: int = 0, node: int = 0) -> str:
        return (self.dirs[node] / "logs" / f"node-{node}" / f"rank-{rank}.log").read_text(errors="replace")

    def wait_started(self, attempt: int = 0) -> Run:
        """Wait until every node has started its ranks, and each rank has written something or lives."""
        nodes = self.agents
        wait_for(lambda: all(len(self.events("ranks_started", node)) > attempt for node in nodes))
        return self

    def rank_pid(self, rank: int = 0, node: int = 0) -> int:
        rows = wait_for(lambda: self.record(node)["ranks"])
        return int(next(row["pid"] for row in rows if row["rank"] == rank))

    def left(self) -> list[int]:
        """Pids of living processes of the run: found by environment, by record, and below the agents."""
        found = {pid for pid, _ in processes.find_run_processes(self.run_id)}
        for path in set(self.dirs):
            for file in (path / "nodes").glob("node-*.json"):
                record = json.loads(file.read_text())
                named = [record, record["warden"] or record, *record["ranks"]]
                found |= {one["pid"] for one in named if processes.is_alive(one["pid"], one["start_time"])}
        return sorted(found)

    def end(self) -> None:
        for process in self.agents.values():
            for pid in [*processes.descendants(process.pid), process.pid] if process.poll() is None else []:
                processes.kill_quietly(pid, signal.SIGKILL)
            process.wait(5)
        for pid in self.left():
            processes.kill_quietly(pid, signal.SIGKILL)


@contextmanager
def bed(root: Path) -> Iterator[Callable[..., Run]]:
    """Make runs, and end whatever a test leaves behind."""
    runs: list[Run] = []

    def make(program: str | list[str], nodes: list[int] | None = None, *, shared: bool = True, **launch: Any) -> Run:
        runs.append(Run(root, nodes or [1], program, shared=shared, launch=launch))
        return runs[-1]

    try:
        yield make
    finally:
        for run in runs:
            run.end()

"""`zl`: the zlaunch command pointed at the lab; every test leaves the lab whole and empty."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.bed import Lab

ROOT = Path(__file__).parents[2]


class Zl:
    """Runs `zlaunch` as a user would: in another process, with its own directory."""

    def __init__(self, lab: Lab, home: Path) -> None:
        self.lab, self.home, self.runs = lab, home, home / "runs"
        self.environ = {**os.environ, "ZLAUNCH_RUNS": str(self.runs), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.started: list[subprocess.Popen[str]] = []

    def target(self, hosts: Sequence[str] | None = None) -> list[str]:
        names = [] if hosts == [] else ["--hosts", ",".join(hosts or self.lab.hosts)]
        return [*names, "--ssh-config", str(self.lab.ssh_config), "--python", self.lab.python]

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher", *words], cwd=self.home, env=self.environ, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def __call__(self, *words: str, code: int | None = 0, timeout: float = 120) -> str:
        """Return the output of a command that must end with this exit status."""
        process = self.start(*words)
        output, _ = process.communicate(timeout=timeout)
        assert code is None or process.returncode == code, f"exit {process.returncode} of {words}:\n{output}"
        return output

    def ssh(
        self, *words: str, program: str | None = None, hosts: Sequence[str] | None = None, code: int | None = 0,
        timeout: float = 120,
    ) -> str:  # fmt: skip
        return self(*self.ssh_words(*words, program=program, hosts=hosts), code=code, timeout=timeout)

    def ssh_words(self, *words: str, program: str | None = None, hosts: Sequence[str] | None = None) -> list[str]:
        after = ["--", "bash", "-c", program] if program else []
        return ["ssh", *self.target(hosts), "--device", "cpu", *words, *after]

    def detached(self, program: str, *words: str, hosts: Sequence[str] | None = None) -> str:
        """Start a program on the hosts; return the run id."""
        lines = self.ssh("--detach", "--json", *words, program=program, hosts=hosts).splitlines()
        return str(json.loads(lines[-1])["run"])

    @property
    def run_id(self) -> str:
        """Id of the newest run."""
        return max(self.runs.iterdir(), key=lambda path: path.stat().st_ctime).name

    def status(self, run: str = "last") -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self("status", run, "--json").splitlines()[-1])
        return answer

    def wait(self, ask: Callable[[], Any], seconds: float = 30) -> Any:
        """Return the first true answer."""
        end = time.monotonic() + seconds
        while not (answer := ask()):
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.1)
        return answer

    def ranks(self, host: str, run: str) -> list[int]:
        """Return pids, as the host counts them, of the run's ranks and of processes that they started."""
        return [int(line.split()[0]) for line in self.lab.processes(host, f"ZLAUNCH_RUN_ID={run}")]

    def agents(self, host: str) -> list[int]:
        """Return the pids of warden and agent, in this order."""
        return sorted(int(line.split()[0]) for line in self.lab.processes(host, "code/node/agent"))

    def left(self, run: str) -> list[str]:
        """Return processes of the run and agents that still run anywhere."""
        texts = (f"ZLAUNCH_RUN_ID={run}", "code/node/agent")
        return [f"{host}: {line}" for host in self.lab.hosts for line in self.lab.processes(host, *texts)]

    def all_running(self, run: str, hosts: Sequence[str] | None = None) -> None:
        """Wait until every host has a rank of the run."""
        self.wait(lambda: all(self.ranks(host, run) for host in hosts or self.lab.hosts))


@pytest.fixture
def zl(lab: Lab, tmp_path: Path) -> Iterator[Zl]:
    zl = Zl(lab, tmp_path)
    yield zl
    for process in zl.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lab.restore_all()
    for host in lab.hosts:  # leftovers of a failed test must not fail the next one
        for line in lab.processes(host, "ZLAUNCH_RUN_ID=", "code/node/agent"):
            lab.run(host, ["kill", "-9", line.split()[0]], check=False)

"""`zl`: the zlaunch command pointed at a real cluster; every test leaves the cluster idle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.node import processes
from launcher.rundir.directory import RunDir
from tests.testbed.bed import Slurm

ROOT = Path(__file__).parents[2]


class Zl:
    """Runs `zlaunch` as a user would: in another process, with its own runs and caches."""

    def __init__(self, cluster: Slurm, home: Path) -> None:
        self.cluster, self.home, self.runs = cluster, home, home / "runs"
        self.environ = {
            **os.environ,
            **cluster.environment,
            "ZLAUNCH_RUNS": str(self.runs),
            "XDG_CACHE_HOME": str(home / "cache"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launcher", *words], cwd=self.home, env=self.environ, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __call__(self, *words: str, code: int | None = 0, timeout: float = 150) -> str:
        """Return the output of a command that must end with this exit status."""
        process = self.start(*words)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{words} did not end: {process.communicate()[0]}") from None
        assert code is None or process.returncode == code, f"exit {process.returncode} of {words}:\n{output}"
        return output

    def submit(self, program: str, *words: str) -> RunDir:
        """Queue a bash program that needs no torch; return at once."""
        output = self("slurm", "--device", "cpu", "--json", *words, "--", "bash", "-c", program)
        return RunDir(Path(json.loads(output.splitlines()[-1])["directory"]))

    def state(self, run: RunDir) -> str:
        state: str = json.loads(self("status", str(run.path), "--json").splitlines()[-1])["state"]
        return state

    def squeue(self, run: RunDir) -> str:
        """Return Slurm's state of the run's job; empty when it is over."""
        job = run.record.ids[0]
        return self.cluster.run(["squeue", "-h", "--array", "-j", job, "-o", "%T"], check=False).stdout.strip()

    def hurry(self, run: RunDir) -> None:
        """Start a requeued job now. It waits for its old credential to expire."""
        wait(lambda: self.squeue(run) == "PENDING", 90)
        time.sleep(2.5)  # credentials count whole seconds: a new one in the second of the revocation is refused
        self.cluster.run(["scontrol", "update", f"jobid={run.record.ids[0]}", "starttime=now"])

    def leftovers(self, run: RunDir) -> list[tuple[int, int]]:
        return processes.find_run_processes(run.run_id)


def wait(done: Callable[[], Any], seconds: float = 90) -> Any:
    """Return the first true answer; fail the test if there is none in time."""
    end = time.monotonic() + seconds
    while not (answer := done()):
        assert time.monotonic() < end, f"not so within {seconds} s: {done}"
        time.sleep(0.1)
    return answer


def events(run: RunDir, *names: str) -> list[dict[str, Any]]:
    return [event for event in run.read_events() if event["event"] in names]


def reasons(run: RunDir, name: str) -> list[str]:
    return [event["reason"] for event in events(run, name)]


def zl_of(cluster: Slurm, home: Path) -> Iterator[Zl]:
    yield Zl(cluster, home)
    jobs = cluster.run(["squeue", "-h", "-o", "%A"], check=False).stdout.split()
    if jobs:
        cluster.run(["scancel", *jobs], check=False)
        wait(lambda: not cluster.run(["squeue", "-h"], check=False).stdout.strip(), 40)


@pytest.fixture
def zl(slurm: Slurm, tmp_path: Path) -> Iterator[Zl]:
    """On a cluster without accounting."""
    yield from zl_of(slurm, tmp_path)


@pytest.fixture
def zl_accounting(slurm_accounting: Slurm, tmp_path: Path) -> Iterator[Zl]:
    yield from zl_of(slurm_accounting, tmp_path)

"""`zlaunch doctor net` inside an allocation of a real Slurm: a step with a task per node measures the network."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.slurm.conftest import Zl

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(200)]


def inside(zl: Zl, nodes: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", "doctor", "net", "--device", "cpu", *words]
    return subprocess.run(
        ["salloc", "--quiet", f"--nodes={nodes}", *command], env=zl.environ, cwd=zl.home, text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=150, check=False,
    )  # fmt: skip


def test_the_nodes_of_an_allocation_measure_their_network_and_later_plans_of_the_partition_know_it(zl: Zl) -> None:
    done = inside(zl, 2, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["hosts"]) == len(found["places"]) == 2
    assert (found["backend"], found["bytes_per_second"] > 1e6) == ("gloo", True)
    kept = json.loads((zl.home / "cache/zlaunch/network.json").read_text())
    assert kept[0]["hosts"] == ["partition gpu", "slurm"]
    assert kept[1]["hosts"] == sorted(found["hosts"])


def test_an_allocation_of_one_node_and_no_allocation_are_refused(zl: Zl) -> None:
    alone = inside(zl, 1)
    assert (alone.returncode, "a network needs two nodes" in alone.stderr) == (2, True)
    assert "no Slurm allocation" in zl("doctor", "net", "--device", "cpu", code=2)

"""A signal 9 is the kernel's out-of-memory killer only where the kernel says so."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.node import memory_kills
from launcher.node.memory_kills import MemoryKills
from tests.beds.agent_bed import FOREVER, Run, bed, wait_for

Make = Callable[..., Run]
NOT_BY_IT = "not by this kernel's out-of-memory killer|but not this one"
"""Whether a test beside this one makes the kernel kill something."""
LIMIT = 96 << 20
EATS = [sys.executable, "-c", "kept = []\nwhile True: kept.append(bytearray(b'x' * (1 << 20)))"]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with bed(tmp_path) as made:
        yield made


@pytest.fixture
def limited() -> Iterator[Path]:
    """A real memory cgroup with a limit of 96 MiB, of the version that this machine has."""
    if os.geteuid():
        pytest.skip("needs root: it makes a memory cgroup")
    old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    base, file = (old, "memory.limit_in_bytes") if old.is_dir() else (new, "memory.max")
    if base == new and "memory" in (new / "cgroup.controllers").read_text():
        (new / "cgroup.subtree_control").write_text("+memory")
    place = base / f"zlaunch-test-{uuid.uuid4().hex[:8]}"
    try:
        place.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        (place / file).write_text(str(LIMIT))
        yield place
    finally:
        wait_for(lambda: (place / "cgroup.procs").read_text() == "")
        place.rmdir()


def start_in(cgroup: Path, run: Run) -> subprocess.Popen[bytes]:
    """The agent of a run, a member of the cgroup from its first instruction on."""
    program = f"echo $$ > {cgroup}/cgroup.procs; exec {sys.executable} code/node/agent --run-dir . --node-rank 0"
    run.agents[0] = subprocess.Popen(["sh", "-c", program], cwd=run.path, stdin=subprocess.DEVNULL)
    return run.agents[0]


def test_a_rank_over_the_memory_limit_of_its_cgroup_is_said_to_be_ended_for_memory(make: Make, limited: Path) -> None:
    run = make(EATS)
    assert start_in(limited, run).wait(60) == 1
    failure = run.record()["failure"]
    assert (failure["cause"], failure["signal"]) == ("out_of_host_memory", signal.SIGKILL)
    assert "out-of-memory killer" in failure["message"]
    assert "its memory limit: 0.09 GiB" in failure["message"]
    assert "slurm.mem" in failure["advice"][0]


def test_a_child_over_the_limit_whose_end_a_shell_hands_on_is_found_too(make: Make, limited: Path) -> None:
    run = make(f'{sys.executable} -c "$EAT"; exit $?', env={"EAT": EATS[2]})
    assert start_in(limited, run).wait(60) == 1
    failure = run.record()["failure"]
    assert (failure["cause"], failure["exit_code"]) == ("out_of_host_memory", 137)


def test_a_kill_in_a_limited_cgroup_is_not_said_to_be_for_memory(make: Make, limited: Path) -> None:
    run = make(FOREVER)
    start_in(limited, run)
    run.wait_started()
    os.kill(run.rank_pid(), signal.SIGKILL)
    assert run.wait() == [1]
    failure = run.record()["failure"]
    assert failure["cause"] == "killed"
    assert "out-of-memory killer" in failure["message"]
    assert "out_of_host_memory" not in str(failure)


def test_a_killed_agent_is_explained_as_well(make: Make) -> None:
    run = make(FOREVER).start().wait_started()
    run.signal(0, signal.SIGKILL)
    assert run.wait() == [1]
    failure = run.record()["failure"]
    assert failure["cause"] == "killed"
    assert re.search(f"killed by signal 9: .*{NOT_BY_IT}", failure["message"])


class Machine:
    """The kernel's files, as MemoryKills reads them below another root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, **files: str) -> None:
        for name, text in files.items():
            path = self.root / FILES[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


FILES = {
    "host": "proc/vmstat", "own": "proc/self/cgroup", "log": "dev/kmsg",
    "v2": "sys/fs/cgroup/job/memory.events", "v2_limit": "sys/fs/cgroup/job/memory.max",
    "inside": "sys/fs/cgroup/memory.events",
    "v1": "sys/fs/cgroup/memory/slurm/memory.oom_control",
    "v1_limit": "sys/fs/cgroup/memory/slurm/memory.limit_in_bytes",
}  # fmt: skip
HOST = {"host": "oom_kill 4\n"}
V2 = {"own": "0::/job\n", "v2": "low 0\noom 3\noom_kill %d\noom_group_kill 0\n", "v2_limit": "2147483648\n"}
V1 = {"own": "9:name=x:/\n4:cpuset,memory:/slurm\n0::/\n", "v1": "oom_kill_disable 0\noom_kill %d\n"}
LOG = "Memory cgroup out of memory: Killed process %d (python) total-vm:75004kB, anon-rss:1048576kB, file-rss:0kB\n"


@pytest.mark.parametrize(
    ("before", "after", "pids", "for_memory", "says"),
    [
        ({}, {}, [7], False, "is not known here"),
        (HOST, {}, [7], False, "not by this kernel's out-of-memory killer"),
        (HOST, {"host": "oom_kill 5\n"}, [7], False, "ended one process on this host meanwhile, perh"),
        (HOST, {"host": "oom_kill 6\n", "log": LOG % 7}, [7], True, "ended process 7 with 1.00 GiB"),
        (HOST, {"host": "oom_kill 6\n", "log": LOG % 8}, [7], False, "2 processes on this host meanwhile, but n"),
        ({**HOST, "log": LOG % 7}, {}, [7], False, "not by this kernel's"),  # an older process 7
        ({**V2, "v2": V2["v2"] % 0}, {"v2": V2["v2"] % 0}, [7], False, "not by its cgroup's"),
        ({**V2, "v2": V2["v2"] % 2}, {"v2": V2["v2"] % 3}, [7], True, "ended one process (its memory limit: 2.00 GiB)"),
        ({**V2, "v2": V2["v2"] % 2, "v2_limit": "max"}, {"v2": V2["v2"] % 3}, [7], True, "cgroup ended one process"),
        ({"own": "0::/../..\n", "inside": "oom_kill 0\n"}, {"inside": "oom_kill 1\n"}, [7], True, "ended one process"),
        ({**V1, "v1": V1["v1"] % 0, "v1_limit": str(2**63 - 4096)}, {"v1": V1["v1"] % 1}, [], True, "ended one proc"),
        ({**V1, "v1": V1["v1"] % 0, "host": "oom_kill 0\n"}, {"host": "oom_kill 1\n"}, [7], False, "perhaps this one"),
        ({"host": "nr_free 1\n"}, {}, [7], False, "is not known here"),
    ],
)  # fmt: skip
def test_only_what_the_kernel_counted_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict, after: dict, pids: list, for_memory: bool, says: str
) -> None:
    monkeypatch.setattr(memory_kills, "in_first_pid_namespace", lambda: True)
    machine = Machine(tmp_path)
    machine.write(**before)
    kills = MemoryKills(str(tmp_path))
    machine.write(**after)
    found, text = kills.verdict(pids)
    assert (found, says in text) == (for_memory, True), text


def test_pids_of_another_namespace_are_not_compared_with_the_kernels_log(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory_kills, "in_first_pid_namespace", lambda: False)
    machine = Machine(tmp_path)
    machine.write(host="oom_kill 0\n")
    kills = MemoryKills(str(tmp_path))
    machine.write(host="oom_kill 1\n", log=LOG % 4711)
    assert kills.verdict([7]) == (
        False, "the kernel's out-of-memory killer ended one process on this host meanwhile, perhaps this one",
    )  # fmt: skip


def test_a_killed_loader_of_data_is_named_by_the_rank_that_it_loaded_for(make: Make) -> None:
    said = "RuntimeError: DataLoader worker (pid 4194303) is killed by signal: Killed. "
    run = make(f"echo '{said}'; exit 1")
    assert run.go() == 1
    assert re.search(NOT_BY_IT, run.record()["failure"]["message"])

"""`zlaunch hostfile --from-slurm` in allocations of a real Slurm: the GPUs or tasks of each node are its slots."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launcher.backends import own_allocation
from launcher.backends.own_allocation import gpus_by_node, tasks_by_node
from launcher.remote import hostfile
from tests.slurm.conftest import Zl

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]


def inside(zl: Zl, asked: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", "hostfile", "--from-slurm", *words]
    return subprocess.run(
        ["salloc", "--quiet", *asked, *command], env=zl.environ, cwd=zl.home, text=True, capture_output=True,
        stdin=subprocess.DEVNULL, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "slots"),
    [
        (["--nodes=2", "--gpus-per-node=2"], [2, 2]),
        (["--nodes=3", "--gpus-per-node=h200:1"], [1, 1, 1]),
        (["--nodes=2"], [1, 1]),
        (["--nodes=2", "--ntasks=4", "--ntasks-per-node=2"], [2, 2]),
        (["--nodes=1", "--gpus-per-node=2"], [2]),
    ],
)
def test_the_slots_of_an_allocation_are_read_back_by_the_parser_of_hostfiles(
    zl: Zl, asked: list[str], slots: list[int]
) -> None:
    done = inside(zl, asked)
    assert done.returncode == 0, done.stderr
    found = hostfile.parse(done.stdout)
    assert list(found.values()) == slots, done.stdout
    assert all(done.stdout.count(f"{host} slots=") == 1 for host in found)


def test_a_hostfile_is_written_with_the_slots_that_the_user_names(zl: Zl) -> None:
    done = inside(zl, ["--nodes=2"], "--slots", "4", "--out", "hosts")
    assert done.returncode == 0, done.stderr
    assert list(hostfile.load(zl.home / "hosts").values()) == [4, 4]
    assert "2 hosts, 8 slots" in done.stderr


def test_outside_of_an_allocation_it_says_where_it_works(zl: Zl) -> None:
    assert "no Slurm allocation" in zl("hostfile", "--from-slurm", code=2)
    assert "--from-slurm" in zl("hostfile", code=2)


def test_the_details_of_a_job_are_read_in_all_their_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    expand = {"n[1-2]": ["n1", "n2"], "n3": ["n3"], "n4": ["n4"]}
    monkeypatch.setattr(own_allocation, "hostnames", lambda listed: expand[listed])
    details = (
        "   NodeList=n[1-4]\n"
        "     Nodes=n[1-2] CPU_IDs=0-1 Mem=0 GRES=gpu:h100:4(IDX:0-3)\n"
        "     Nodes=n3 CPU_IDs=0-1 Mem=0 GRES=fpga:1(IDX:0),gpu:2(IDX:0,3)\n"
        "     Nodes=n4 CPU_IDs=0-1 Mem=0 GRES=\n"
    )
    assert gpus_by_node(details) == {"n1": 4, "n2": 4, "n3": 2}
    assert tasks_by_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_by_node("") == []

"""What the preflight table shows of hosts, from their facts alone."""

from __future__ import annotations

from typing import Any

from launcher.backends.checklist import Row
from launcher.backends.ssh import preflight
from launcher.backends.ssh.host_request import requested_hosts
from launcher.backends.ssh.image_check import HostImage, image_problems
from launcher.backends.ssh.preflight_table import Inspection, make_table
from launcher.job.load import convert
from launcher.machine.cuda_wheel import cuda_of
from launcher.remote.connect import Options
from launcher.remote.fleet import Fleet
from launcher.remote.session import Session


def gpu(index: int) -> dict[str, Any]:
    card = {"name": "NVIDIA H100", "memory_bytes": 81559 << 20, "compute_capability": 9.0}
    return {"index": index, "entry": str(index), **card}


def facts(gpus: int = 8, driver: str = "580.1", **changes: Any) -> dict[str, Any]:
    return {
        "python": "/env/bin/python",
        "version": [3, 11, 7],
        "packages": {
            "torch": "2.11.0+cu130",
            "transformers": "5.17.0",
            "peft": "0.21.0",
            "msgspec": "0.20.0",
            "nvidia-nccl-cu13": "2.28.3",
        },
        "memory_bytes": 1 << 40,
        "free_bytes": 1 << 40,
        "workdir": "/root/zlaunch",
        "workdir_error": None,
        "missing": [],
        "gpus": {"gpus": [gpu(i) for i in range(gpus)], "driver": driver if gpus else "", "notes": [], "error": ""},
        **changes,
    }


def table(*hosts: dict[str, Any], job: dict[str, Any] | None = None) -> list[Row]:
    names = [f"h{i}" for i in range(len(hosts))]
    spec = convert({"ssh": {"hosts": ",".join(names)}, **(job or {})}, where="test")
    found = Inspection(names, facts=dict(enumerate(hosts)))
    found.login = dict.fromkeys(found.facts, 0.2)
    found.skew = dict.fromkeys(found.facts, 0.0)
    return make_table(spec, requested_hosts(spec.ssh), found, ())


def test_equal_hosts_block_nothing_and_show_driver_and_nccl() -> None:
    rows = table(facts(), facts())
    assert not any(row.blocks for row in rows)
    assert rows[0].cells["gpus"].text == "8 for 8 slots"
    assert rows[0].cells["driver"].text == "580.1, CUDA 13.0, NCCL 2.28.3"


def test_a_host_with_other_versions_is_named_with_what_most_have() -> None:
    other = facts(packages={**facts()["packages"], "torch": "2.6.0"})
    rows = table(facts(), other, facts())
    assert [row.blocks for row in rows] == [False, True, False]
    assert "torch 2.6.0, but 2.11.0+cu130 on most hosts" in rows[1].cells["environment"].advice


def test_slots_beyond_the_gpus_that_a_host_has_block() -> None:
    rows = table(facts(8), facts(4), job={"ssh": {"hosts": "h0,h1", "slots": 8}})
    assert [row.blocks for row in rows] == [False, True]
    assert "slot 7 requested" in rows[1].cells["gpus"].advice


def test_another_driver_cuda_or_nccl_blocks_and_so_does_no_gpu_at_all() -> None:
    usual = facts()["packages"]
    old_cuda = facts(packages={**usual, "torch": "2.11.0+cu128"})
    old_nccl = facts(packages={**usual, "nvidia-nccl-cu13": "2.27.1"})
    rows = table(facts(), facts(), facts(), facts(driver="535.9"), old_cuda, old_nccl, facts(gpus=0))
    assert [row.cells["driver"].level for row in rows] == ["ok", "ok", "ok", "bad", "bad", "bad", "ok"]
    advice = [row.cells["driver"].advice.partition(":")[0] for row in rows[3:6]]
    assert advice[0] == "driver 535.9, but 580.1 on most hosts"
    assert advice[1] == "CUDA 12.8, but 13.0 on most hosts"
    assert advice[2] == "NCCL 2.27.1, but 2.28.3 on most hosts"
    assert rows[6].cells["gpus"].level == "bad"


def test_a_run_on_cpus_compares_no_driver_and_a_run_in_an_image_only_the_driver() -> None:
    other = facts(driver="535.9", packages={})
    assert table(facts(), facts(), other, job={"device": "cpu"})[2].cells["driver"].level == "ok"
    inside = table(facts(), facts(), facts(packages={}), other, job={"container": {"runtime": "docker"}})
    assert [row.blocks for row in inside] == [False, False, False, True]
    assert inside[2].cells["environment"].text == "in the image"


def test_the_cuda_version_is_that_of_torch_or_of_the_runtimes_package() -> None:
    assert cuda_of({"torch": "2.11.0+cu130"}) == "13.0"
    assert cuda_of({"torch": "2.4.0+cu118.post1"}) == "11.8"
    assert cuda_of({"torch": "2.11.0", "nvidia-cuda-runtime-cu12": "12.8.90"}) == "12.8"
    assert cuda_of({"torch": "2.11.0+cpu"}) == ""


def test_a_package_that_one_host_lacks_is_named_and_deepspeed_is_needed_for_zero() -> None:
    usual = {**facts()["packages"], "deepspeed": "0.19.8"}
    without = facts()
    rows = table(facts(packages=usual), without, facts(packages=usual))
    assert [row.blocks for row in rows] == [False, True, False]
    assert "deepspeed is missing, but 0.19.8 on most hosts" in rows[1].cells["environment"].advice
    rows = table(without, without, job={"train": {"zero_stage": 2}})
    assert "deepspeed not installed" in rows[0].cells["environment"].advice


class Listening(Session):
    """A host with two addresses, where every caller reaches the first one only if it is in `open_to`."""

    def __init__(self, rank: int, open_to: dict[int, set[str]]) -> None:
        super().__init__(f"h{rank}", Options(), "python")
        self.rank, self.open_to = rank, open_to

    def call(self, operation: str, payload: bytes = b"", *, timeout: float = 60, **arguments: Any) -> dict[str, Any]:
        if operation == "listen":
            return {"ports": [10000 + self.rank, 20000], "addresses": [f"10.0.0.{self.rank}", f"10.9.0.{self.rank}"]}
        if operation == "reach":
            return {"reached": [address in self.open_to[self.rank] for address, _, _ in arguments["targets"]]}
        return {}


def reached(open_to: dict[int, set[str]], master_addr: str | None = None) -> dict[int, list[int]]:
    fleet = Fleet([], Options(), "python")
    fleet.sessions = [Listening(rank, open_to) for rank in open_to]
    return preflight.connect_all(fleet, {rank: {"address": f"10.0.0.{rank}"} for rank in open_to}, master_addr)


def test_hosts_try_each_other_at_all_addresses_that_a_run_would_try() -> None:
    inner = {f"10.9.0.{rank}" for rank in range(3)}
    assert reached(dict.fromkeys(range(3), inner)) == {0: [], 1: [], 2: []}
    mixed = {0: inner, 1: {"10.0.0.0", "10.9.0.0", "10.9.0.2"}, 2: {"10.0.0.0", "10.9.0.1"}}
    assert reached(mixed) == {0: [], 1: [], 2: []}
    parted = {0: inner, 1: {"10.9.0.0", "10.9.0.2"}, 2: {"10.0.0.0", "10.9.0.1"}}  # no address for all others
    assert [bool(silent) for silent in reached(parted).values()].count(True) == 1
    assert reached({**mixed, 1: {"10.0.0.0"}}) == {0: [], 1: [2], 2: []}


def test_the_address_that_the_user_names_is_the_one_that_counts() -> None:
    inner = {"172.16.0.1", *(f"10.9.0.{rank}" for rank in range(3))}
    assert reached(dict.fromkeys(range(3), inner), "172.16.0.1") == {0: [], 1: [], 2: []}
    assert reached(dict.fromkeys(range(3), inner), "172.16.0.2") == {0: [], 1: [0], 2: [0]}


def test_a_missing_model_a_full_disk_and_no_torch_block() -> None:
    rows = table(
        facts(missing=["/models/qwen"]),
        facts(free_bytes=1 << 20),
        facts(packages={}),
        facts(workdir_error="/data: Read-only file system"),
        job={"model": {"path": "/models/qwen"}},
    )
    assert [next(name for name, cell in row.cells.items() if cell.level == "bad") for row in rows] == [
        "model", "disk", "environment", "disk",
    ]  # fmt: skip


def test_hosts_that_cannot_be_reached_keep_their_row() -> None:
    spec = convert({"ssh": {"hosts": "a,b"}}, where="test")
    found = Inspection(["a", "b"], closed={0: "no answer within 10 s"}, facts={1: facts()})
    found.login, found.skew = {1: 9.0}, {1: 4.0}
    rows = make_table(spec, requested_hosts(spec.ssh), found, ())
    assert rows[0].blocks
    assert rows[0].cells["login"].advice == "no answer within 10 s"
    assert (rows[1].cells["login"].level, rows[1].cells["clock"].level) == ("warn", "warn")


def test_another_image_under_the_same_name_and_an_absent_one_block() -> None:
    spec = convert({"ssh": {"hosts": "a,b,c,d"}}, where="test")
    found = Inspection(list("abcd"), facts={rank: facts() for rank in range(4)})
    found.login, found.skew = dict.fromkeys(range(4), 0.1), dict.fromkeys(range(4), 0.0)
    same, other, absent = HostImage("sha256:aa"), HostImage("sha256:bb"), HostImage(problem="no image zl:1 here")
    found.images = {0: same, 1: other, 2: absent, 3: same}
    rows = make_table(spec, requested_hosts(spec.ssh), found, ())
    assert [row.cells["image"].level for row in rows] == ["ok", "bad", "bad", "ok"]
    assert "sha256:bb, but sha256:aa on most hosts" in rows[1].cells["image"].advice
    problems = image_problems(found.images)
    assert [bool(problems[rank]) for rank in range(4)] == [False, True, True, False]
    assert "zlaunch image load" in problems[1][0]


def test_what_the_census_noticed_is_a_warning() -> None:
    noticed = facts()
    noticed["gpus"] = {**noticed["gpus"], "notes": ["the driver does not report how much memory NVIDIA GB10 has"]}
    cell = table(noticed, facts())[0].cells["gpus"]
    assert (cell.level, cell.advice) == ("warn", "the driver does not report how much memory NVIDIA GB10 has")

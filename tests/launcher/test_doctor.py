"""What the preflight table says about hosts, from facts alone."""

from __future__ import annotations

from typing import Any

from launcher import doctor, hosts
from launcher.image import HostImage
from launcher.spec import convert

GPU = "{i}, GPU-{i}, NVIDIA H100, 81559, 9.0, {driver}"


def facts(gpus: int = 8, driver: str = "580.1", **changes: Any) -> dict[str, Any]:
    return {
        "python": "/env/bin/python",
        "version": [3, 11, 7],
        "packages": {"torch": "2.11.0+cu130", "transformers": "5.17.0", "peft": "0.21.0", "nvidia-nccl-cu13": "2.28.3"},
        "memory_bytes": 1 << 40,
        "free_bytes": 1 << 40,
        "workdir": "/root/zlaunch",
        "workdir_error": None,
        "missing": [],
        "gpus": "\n".join(GPU.format(i=i, driver=driver) for i in range(gpus)),
        **changes,
    }


def table(*said: dict[str, Any], job: dict[str, Any] | None = None) -> list[doctor.Row]:
    names = [f"h{i}" for i in range(len(said))]
    spec = convert({"ssh": {"hosts": ",".join(names)}, **(job or {})}, where="test")
    found = doctor.Findings(names, said=dict(enumerate(said)))
    found.login = dict.fromkeys(found.said, 0.2)
    found.skew = dict.fromkeys(found.said, 0.0)
    return doctor.rows(spec, hosts.wanted(spec.ssh), found, ())


def test_equal_hosts_block_nothing_and_show_driver_and_nccl() -> None:
    rows = table(facts(), facts())
    assert not any(row.blocks for row in rows)
    assert rows[0].cells["gpus"].text == "8 for 8 slots"
    assert rows[0].cells["driver"].text == "580.1, NCCL 2.28.3"


def test_a_host_with_other_versions_is_named_with_what_most_have() -> None:
    other = facts(packages={**facts()["packages"], "torch": "2.6.0"})
    rows = table(facts(), other, facts())
    assert [row.blocks for row in rows] == [False, True, False]
    assert "torch 2.6.0 (most have 2.11.0+cu130)" in rows[1].cells["environment"].advice


def test_slots_are_held_against_the_gpus_that_are_there() -> None:
    rows = table(facts(8), facts(4), job={"ssh": {"hosts": "h0,h1", "slots": 8}})
    assert [row.blocks for row in rows] == [False, True]
    assert "slot 7 is asked for" in rows[1].cells["gpus"].advice


def test_another_driver_is_a_warning_and_no_driver_at_all_blocks() -> None:
    rows = table(facts(), facts(), facts(driver="535.9"), facts(gpus=0))
    assert rows[2].cells["driver"].level == "warn"
    assert not rows[2].blocks
    assert rows[3].cells["gpus"].level == "bad"


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
    found = doctor.Findings(["a", "b"], closed={0: "no answer within 10 s"}, said={1: facts()})
    found.login, found.skew = {1: 9.0}, {1: 4.0}
    rows = doctor.rows(spec, hosts.wanted(spec.ssh), found, ())
    assert rows[0].blocks
    assert rows[0].cells["login"].advice == "no answer within 10 s"
    assert (rows[1].cells["login"].level, rows[1].cells["clock"].level) == ("warn", "warn")


def test_another_image_under_the_same_name_and_an_absent_one_block() -> None:
    spec = convert({"ssh": {"hosts": "a,b,c,d"}}, where="test")
    found = doctor.Findings(list("abcd"), said={rank: facts() for rank in range(4)})
    found.login, found.skew = dict.fromkeys(range(4), 0.1), dict.fromkeys(range(4), 0.0)
    same, other, absent = HostImage("sha256:aa"), HostImage("sha256:bb"), HostImage(problem="no image zl:1 here")
    found.images = {0: same, 1: other, 2: absent, 3: same}
    rows = doctor.rows(spec, hosts.wanted(spec.ssh), found, ())
    assert [row.cells["image"].level for row in rows] == ["ok", "bad", "bad", "ok"]
    assert "sha256:bb, but sha256:aa on most hosts" in rows[1].cells["image"].advice
    problems = hosts.image_problems(found.images)
    assert [bool(problems[rank]) for rank in range(4)] == [False, True, True, False]
    assert "zlaunch image load" in problems[1][0]

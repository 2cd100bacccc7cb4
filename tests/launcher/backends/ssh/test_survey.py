"""Which hosts and slots a job gets, and which problems the hosts' facts show; no network here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.backends.ssh import preflight, requirements, survey
from launcher.backends.ssh.host_request import requested_hosts
from launcher.errors import HostfileError, UsageError
from launcher.job.load import convert


def ssh(**keys: Any) -> Any:
    return convert({"ssh": keys}, where="test").ssh


def test_hosts_without_a_number_of_slots_get_one_per_gpu() -> None:
    request = requested_hosts(ssh(hosts="a,b"))
    assert request.slots({"a": 8, "b": 4}) == {"a": list(range(8)), "b": list(range(4))}
    assert requested_hosts(ssh(hosts="a,b", slots=2)).slots({"a": 8, "b": 8}) == {"a": [0, 1], "b": [0, 1]}


def test_excluded_hosts_and_hosts_without_slots_are_not_connected_to(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("a slots=2\nb slots=0\nc slots=2\nd slots=2\n")
    assert requested_hosts(ssh(hostfile=str(file), exclude="c")).names == ["a", "d"]
    assert requested_hosts(ssh(hosts=str(file), include="d:1@a")).slots({}) == {"a": [0, 1], "d": [1]}


def test_a_request_without_a_host_keeps_the_slots_and_filters_of_the_others():
    request = requested_hosts(ssh(hosts="a,b,c", slots=4, include="a:0@b:1,2")).without(["a"])
    assert request.names == ["b"]
    assert request.slots({}) == {"b": [1, 2]}
    assert request.without(["b"]).names == []


def test_a_long_list_of_hosts_is_no_file_name() -> None:
    assert len(requested_hosts(ssh(hosts=",".join(f"node{i}" for i in range(200)))).names) == 200


@pytest.mark.parametrize("keys", [{}, {"hosts": "a", "hostfile": "b"}, {"hosts": "a", "exclude": "a"}])
def test_no_hosts_hosts_named_twice_and_no_slot_left_are_refused(keys: dict[str, str]) -> None:
    with pytest.raises(HostfileError):
        requested_hosts(ssh(**keys))


def test_hosts_with_and_without_gpus_are_not_mixed_silently() -> None:
    job = convert({}, where="test")
    assert requirements.device_of(job, {"a": 8, "b": 8}) == "cuda"
    assert requirements.device_of(job, {"a": 0, "b": 0}) == "cpu"
    with pytest.raises(UsageError, match="no GPU on b, c, but on a"):
        requirements.device_of(job, {"a": 8, "b": 0, "c": 0})


def facts_with(**packages: str) -> dict[str, Any]:
    return {
        "workdir_error": None, "free_bytes": 1 << 40, "workdir": "/w", "version": [3, 11, 7], "python": "/env/python",
        "missing": [],
        "packages": {"torch": "2.11", "transformers": "5.1", "peft": "0.2", "msgspec": "0.19", **packages},
    }  # fmt: skip


def problems(*facts: dict[str, Any], **job: Any) -> list[list[str]]:
    usual = requirements.majority(facts)
    spec = convert(job, where="test")
    return [list(requirements.find_problems(spec, host, [0], "cpu", 0.0, usual).values()) for host in facts]


def test_a_package_that_only_one_host_lacks_or_has_is_named() -> None:
    assert problems(facts_with(unsloth="1"), facts_with(unsloth="1"), facts_with()) == [
        [], [], ["unsloth is missing, but 1 on most hosts: make them equal"],
    ]  # fmt: skip
    assert problems(facts_with(), facts_with(), facts_with(unsloth="1"))[2] == [
        "unsloth 1, but not installed on most hosts: make them equal"
    ]
    assert problems(facts_with(), facts_with(unsloth="1")) == [
        ["unsloth is missing, but 1 on most hosts: make them equal"],
        [],
    ]


def test_deepspeed_is_needed_for_a_zero_stage() -> None:
    assert "deepspeed not installed" in problems(facts_with(), train={"zero_stage": 3})[0][0]
    assert problems(facts_with(), train={"zero_stage": 0}) == problems(facts_with()) == [[]]


def test_a_run_in_a_container_needs_no_environment_even_without_a_named_image() -> None:
    bare = {**facts_with(), "packages": {}}
    assert problems(bare, container={"runtime": "docker"}) == [[]]
    assert problems(bare, container={"image": "zlaunch:1"}) == [[]]
    assert problems(bare)[0]
    assert problems(bare, container={"runtime": "none", "image": "zlaunch:1"})[0]


@pytest.mark.parametrize(
    ("container", "error"),
    [({"image": "/shared/zl.tar"}, "archive"), ({"runtime": "pyxis", "image": "i"}, "plugin of Slurm")],
)
def test_an_image_that_no_host_can_run_is_refused_before_any_host_is_contacted(
    container: dict[str, str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = convert({"ssh": {"hosts": "node1"}, "container": container}, where="test")
    for module, start in ((survey, survey.survey), (preflight, lambda job: preflight.examine(job, ()))):
        monkeypatch.setattr(module, "Fleet", None)
        with pytest.raises(UsageError, match=error):
            start(job)


def host(boot: str, network: str, *uuids: str) -> dict[str, Any]:
    cards = [{"index": index, "uuid": uuid} for index, uuid in enumerate(uuids)]
    return {"boot_id": boot, "network": network, "gpus": {"gpus": cards}}


def test_hosts_that_would_share_a_gpu_are_named_whatever_they_are_called() -> None:
    one, alias, container = (
        host("b", "net:1", "GPU-1", "GPU-2"),
        host("b", "net:1", "GPU-1", "GPU-2"),
        host("b", "net:2", "GPU-2"),
    )
    names = ["a", "a.lan", "c"]
    found = requirements.shared_gpus(names, {0: one, 1: alias, 2: container}, [[0, 1], [0, 1], [0]])
    assert found[1].startswith("the same machine as a, so both would use GPU 0 (GPU-1)")
    assert found[2].startswith("on one machine with a, so both would use GPU 0 (GPU-2)")
    assert requirements.shared_gpus(names, {0: one, 1: alias}, [[0], [1]]) == {}  # each has its own
    other = host("b2", "net:1", "[N/A]"), host("b3", "net:1", "[N/A]")
    assert requirements.shared_gpus(names, dict(enumerate(other)), [[0], [0]]) == {}  # no UUIDs, but two machines


def test_hosts_of_one_machine_are_reported() -> None:
    facts = {0: host("b", "net:1"), 1: host("b", "net:1"), 2: host("b2", "net:1"), 3: host("b2", "net:9")}
    assert requirements.shared_machines(["a", "a.lan", "c", "d"], facts) == [
        "a and a.lan are the same machine: they share its cores and memory",
        "c and d are on one machine (the same boot id): they share its cores and memory",
    ]
    many = {rank: host("b", "net:1") for rank in range(64)}
    (note,) = requirements.shared_machines([f"n{rank}" for rank in many], many)
    assert note.startswith("n0, n1, n2, 60 more and n63 are the same machine")

"""Which hosts and slots a job gets, and what the hosts' answers mean; no network here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.backends.ssh import preflight, requirements, survey
from launcher.backends.ssh.watch import Seen, verdict
from launcher.errors import HostfileError, UsageError
from launcher.job.load import convert
from launcher.remote.fleet import shell_path
from launcher.rundir.state import RunState


def ssh(**keys: Any) -> Any:
    return convert({"ssh": keys}, where="test").ssh


def test_hosts_without_slots_get_what_their_gpus_say() -> None:
    wanted = survey.wanted(ssh(hosts="a,b"))
    assert wanted.slots({"a": 8, "b": 4}) == {"a": list(range(8)), "b": list(range(4))}
    assert survey.wanted(ssh(hosts="a,b", slots=2)).slots({"a": 8, "b": 8}) == {"a": [0, 1], "b": [0, 1]}


def test_excluded_hosts_and_hosts_without_slots_are_not_even_connected_to(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("a slots=2\nb slots=0\nc slots=2\nd slots=2\n")
    assert survey.wanted(ssh(hostfile=str(file), exclude="c")).names == ["a", "d"]
    assert survey.wanted(ssh(hosts=str(file), include="d:1@a")).slots({}) == {"a": [0, 1], "d": [1]}


def test_hosts_may_be_a_long_list_and_still_no_file_name() -> None:
    assert len(survey.wanted(ssh(hosts=",".join(f"node{i}" for i in range(200)))).names) == 200


@pytest.mark.parametrize("keys", [{}, {"hosts": "a", "hostfile": "b"}, {"hosts": "a", "exclude": "a"}])
def test_no_hosts_two_ways_to_name_them_and_nothing_left_are_refused(keys: dict[str, str]) -> None:
    with pytest.raises(HostfileError):
        survey.wanted(ssh(**keys))


def test_hosts_with_and_without_gpus_are_not_mixed_silently() -> None:
    job = convert({}, where="test")
    assert requirements.device_of(job, [8, 8]) == "cuda"
    assert requirements.device_of(job, [0, 0]) == "cpu"
    with pytest.raises(UsageError):
        requirements.device_of(job, [8, 0])


def said(**packages: str) -> dict[str, Any]:
    return {
        "workdir_error": None, "free_bytes": 1 << 40, "workdir": "/w", "version": [3, 11, 7], "python": "/env/python",
        "missing": [],
        "packages": {"torch": "2.11", "transformers": "5.1", "peft": "0.2", "msgspec": "0.19", **packages},
    }  # fmt: skip


def problems(*facts: dict[str, Any], **job: Any) -> list[list[str]]:
    usual = requirements.majority(facts)
    return [requirements.find_problems(convert(job, where="test"), one, [0], "cpu", 0.0, usual) for one in facts]


def test_a_package_that_only_one_host_lacks_or_has_is_named() -> None:
    assert problems(said(unsloth="1"), said(unsloth="1"), said()) == [
        [], [], ["unsloth is missing, but 1 on most hosts: make them equal"],
    ]  # fmt: skip
    assert problems(said(), said(), said(unsloth="1"))[2] == [
        "unsloth 1, but not installed on most hosts: make them equal"
    ]
    assert problems(said(), said(unsloth="1")) == [["unsloth is missing, but 1 on most hosts: make them equal"], []]


def test_deepspeed_is_needed_where_a_zero_stage_is_asked_for() -> None:
    assert "deepspeed not installed" in problems(said(), train={"zero_stage": 3})[0][0]
    assert problems(said(), train={"zero_stage": 0}) == problems(said()) == [[]]


def test_a_run_in_a_container_needs_no_environment_though_no_image_is_named() -> None:
    bare = {**said(), "packages": {}}
    assert problems(bare, container={"runtime": "docker"}) == [[]]
    assert problems(bare, container={"image": "zlaunch:1"}) == [[]]
    assert problems(bare)[0]
    assert problems(bare, container={"runtime": "none", "image": "zlaunch:1"})[0]


@pytest.mark.parametrize(
    ("container", "said"),
    [({"image": "/shared/zl.tar"}, "archive"), ({"runtime": "pyxis", "image": "i"}, "plugin of Slurm")],
)
def test_what_no_host_could_run_is_refused_before_one_is_asked(
    container: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = convert({"ssh": {"hosts": "node1"}, "container": container}, where="test")
    for module, ask in ((survey, survey.survey), (preflight, lambda job: preflight.examine(job, ()))):
        monkeypatch.setattr(module, "Fleet", None)
        with pytest.raises(UsageError, match=said):
            ask(job)


def test_an_interpreter_below_the_home_is_found_by_the_hosts_own_shell() -> None:
    assert shell_path("~/my env/bin/python") == "\"$HOME\"/'my env/bin/python'"
    assert shell_path("/opt/a b/python") == "'/opt/a b/python'"


def seen(state: str | None, alive: bool = False, reached: bool = True) -> Seen:
    return Seen({"state": state} if state else None, reached, alive)


LOST, AWAY = seen("RUNNING"), seen("RUNNING", reached=False)


@pytest.mark.parametrize(
    ("nodes", "state"),
    [
        ([seen("RUNNING", True), seen("RUNNING", True)], RunState.RUNNING),
        ([seen("SUCCEEDED"), seen("RUNNING", True)], RunState.RUNNING),
        ([seen("SUCCEEDED"), seen("SUCCEEDED")], RunState.SUCCEEDED),
        ([seen("SUCCEEDED"), seen("FAILED")], RunState.SUCCEEDED),  # elastic: the hub's word counts
        ([seen("FAILED"), AWAY], RunState.FAILED),
        ([seen("STOPPED"), seen("STOPPED")], RunState.CANCELLED),
        ([LOST, seen("FAILED")], RunState.LOST),
        ([AWAY, seen("RUNNING", True)], RunState.RUNNING),
        ([AWAY, seen("FAILED")], RunState.FAILED),
        ([AWAY, AWAY], None),
        ([seen(None), seen(None)], RunState.PENDING),
        ([seen(None, reached=False)], None),
    ],
)
def test_the_state_of_a_run_follows_from_what_its_hosts_show(nodes: list[Seen], state: RunState | None) -> None:
    assert verdict(nodes) is state

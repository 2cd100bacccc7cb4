"""The test bed itself: hosts that are really separate, faults that really happen."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.testbed import plugin, slots
from tests.testbed.bed import Docker, Farm, Lab, Slurm

pytestmark = pytest.mark.timeout(180)


def ssh(config: object, host: str, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ssh", "-n", "-F", str(config), host, command], capture_output=True, text=True, check=False)


@pytest.mark.ssh
def test_every_host_has_its_own_name_address_home_and_processes(lab: Lab) -> None:
    for host in lab.hosts:
        look = "hostname; ip -4 -o addr show eth0; "
        look += "ls -d ~/seen /tmp/seen; touch ~/seen /tmp/seen; ls -d /proc/[0-9]* | wc -l"
        answer = ssh(lab.ssh_config, host, look)
        name, address, *seen, processes = answer.stdout.splitlines()
        assert name == host
        assert f" {lab.address(host)}/24 " in address
        assert seen == []
        assert int(processes) < 30


@pytest.mark.ssh
def test_only_the_shared_directory_is_seen_by_all_hosts(lab: Lab) -> None:
    lab.run("node1", ["sh", "-c", f"echo shared > {lab.shared}/token; echo own > /var/tmp/token"])
    assert lab.read("node2", lab.shared / "token") == "shared\n"
    assert lab.run("node2", ["cat", "/var/tmp/token"], check=False).returncode != 0
    assert not Path("/var/tmp/token").exists()


@pytest.mark.ssh
def test_the_interpreter_of_the_tests_runs_on_every_host_with_its_packages(lab: Lab) -> None:
    for host in lab.hosts:
        answer = ssh(lab.ssh_config, host, f"{lab.python} -c 'import pytest; print(pytest.__version__)'")
        assert answer.stdout.strip() == pytest.__version__, answer.stderr


@pytest.mark.ssh
def test_a_cut_cable_is_silence_and_a_dead_host_a_refusal_and_both_can_be_restored(lab: Lab) -> None:
    def connects(timeout: float) -> bool:
        with socket.create_connection((lab.address("node4"), 22), timeout=timeout):
            return True

    try:
        lab.run("node4", ["sleep", "0"])
        lab.cut("node4")
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            connects(0.5)
        assert time.monotonic() - started >= 0.5
        assert lab.run("node4", ["hostname"]).stdout == "node4\n"
        lab.restore("node4")
        assert connects(5)

        lab.kill_host("node4")
        with pytest.raises(ConnectionError):
            connects(5)
        with pytest.raises(RuntimeError, match="switched off"):
            lab.run("node4", ["hostname"])
    finally:
        lab.restore_all()
    assert ssh(lab.ssh_config, "node4", "hostname").stdout == "node4\n"


@pytest.mark.ssh
def test_processes_lists_what_runs_on_a_host_by_command_line_or_environment(lab: Lab) -> None:
    lab.run("node2", ["sh", "-c", "MARK=needle-1 setsid sleep 30 >/dev/null 2>&1 & echo $! > /tmp/pid"])
    assert [line.split()[1:] for line in lab.processes("node2", "needle-1")] == [["sleep", "30"]]
    assert lab.processes("node1", "needle-1") == []
    lab.run("node2", ["sh", "-c", "kill $(cat /tmp/pid)"])


@pytest.mark.ssh
def test_a_farm_of_sshd_answers_under_as_many_names_with_a_home_each(sshd_farm: Callable[[int], Farm]) -> None:
    farm = sshd_farm(5)
    for host in farm.hosts:
        answer = ssh(farm.ssh_config, host, "echo $FARM_HOST; cd ~; pwd")
        assert answer.stdout.split() == [host, str(farm.home(host))], answer.stderr


@pytest.mark.slurm
def test_slurm_runs_a_job_on_four_nodes_and_has_no_accounting(slurm: Slurm) -> None:
    job = ["srun", "-N4", "--ntasks-per-node=1", "--gpus-per-node=2", "printenv", "SLURMD_NODENAME"]
    assert sorted(slurm.run(job).stdout.split()) == slurm.nodes
    assert "disabled" in slurm.run(["sacct"], check=False).stderr


@pytest.mark.slurm
def test_slurm_with_accounting_remembers_a_finished_job(slurm_accounting: Slurm) -> None:
    slurm_accounting.run(["srun", "-N1", "--job-name=remembered", "true"])
    deadline = time.monotonic() + 20
    while "remembered|COMPLETED" not in (text := slurm_accounting.run(["sacct", "-nXP", "-o", "JobName,State"]).stdout):
        assert time.monotonic() < deadline, text
        time.sleep(0.3)


@pytest.mark.slurm
def test_slurm_in_the_lab_runs_each_task_on_a_host_of_its_own(slurm_lab: Slurm, lab: Lab) -> None:
    answer = slurm_lab.run(["srun", "-N4", "--ntasks-per-node=1", f"--chdir={lab.shared}", "hostname"])
    assert sorted(answer.stdout.split()) == lab.hosts


@pytest.mark.container
def test_the_private_dockerd_runs_python_from_the_base_image(docker: Docker) -> None:
    answer = subprocess.run(
        ["docker", "run", "--rm", "--network=host", "--pull=never", docker.base_image, "python3", "-c", "print(6*7)"],
        env={**os.environ, **docker.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout == "42\n", answer.stderr


@pytest.mark.ssh
def test_two_test_runs_at_once_get_different_slots(lab: Lab) -> None:
    first, second = slots.acquire(), slots.acquire()
    try:
        assert len({first.tag, second.tag, lab.tag}) == 3
        assert first.lab_network != second.lab_network
    finally:
        first.release()
        second.release()


def test_a_missing_tool_skips_with_its_reason_and_fails_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugin.TOOLS, "lab", ("no-such-tool-of-the-test-bed",))
    monkeypatch.setattr(plugin.os, "geteuid", lambda: 0)
    monkeypatch.setattr(plugin.subprocess, "run", lambda *args, **kwargs: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception):
        plugin.require("lab")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception):
        plugin.require("lab")

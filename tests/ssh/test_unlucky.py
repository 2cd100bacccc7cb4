"""Interruptions in the middle of a start: Ctrl-C, a cancel, a broken connection; and hosts that lost their files."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from launcher.rundir.directory import RunDir
from tests.ssh.conftest import Zl

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(120)]

SLOW = "import os, time; time.sleep(4); exec(open(os.path.join(os.path.dirname(os.__file__), 'getopt.py')).read())"
"""A module of the library that only agents import, and that takes its time, as on a loaded file server."""
WORK = "echo at work; sleep 300"


@pytest.fixture
def slow(zl: Zl) -> Iterator[None]:
    for host in zl.lab.hosts[:2]:
        zl.lab.run(host, ["sh", "-c", f'mkdir -p /tmp/slow; echo "{SLOW}" > /tmp/slow/getopt.py'])
    yield
    for host in zl.lab.hosts[:2]:
        zl.lab.run(host, ["rm", "-r", "/tmp/slow"])


def starting(zl: Zl, hosts: list[str]) -> subprocess.Popen[str]:
    """Return an attached launcher whose agents are being started on all hosts."""
    words = ["--set", 'ssh.setup=["export PYTHONPATH=/tmp/slow"]']
    process = zl.start(*zl.ssh_words(*words, program=WORK, hosts=hosts))
    zl.wait(lambda: all(zl.agents(host) for host in hosts))
    return process


@pytest.mark.parametrize("hosts", [["node1"], ["node1", "node2"]], ids=["one host", "two hosts"])
@pytest.mark.usefixtures("slow")
def test_ctrl_c_while_the_agents_start_leaves_nothing_behind(zl: Zl, hosts: list[str]) -> None:
    process = starting(zl, hosts)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    time.sleep(5)
    assert zl.left(zl.run_id) == []
    assert zl.status()["state"] == "CANCELLED"


@pytest.mark.parametrize("hosts", [["node1"], ["node1", "node2"]], ids=["one host", "two hosts"])
@pytest.mark.usefixtures("slow")
def test_a_run_that_is_cancelled_while_its_agents_start_does_not_run(zl: Zl, hosts: list[str]) -> None:
    process = starting(zl, hosts)
    assert "CANCELLED" in zl("cancel", zl.run_id)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert zl.left(zl.run_id) == []
    assert zl.status()["state"] == "CANCELLED"


@pytest.mark.usefixtures("slow")
def test_a_start_whose_connection_breaks_does_not_continue_on_its_own(zl: Zl) -> None:
    process = starting(zl, ["node1"])
    lines = zl.lab.processes("node1", "sshd")
    sessions = [line.split()[0] for line in lines if "root@" in line or "sshd-session" in line]
    zl.lab.run("node1", ["kill", "-9", *sessions])
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "node1: the connection broke" in output
    time.sleep(5)
    assert zl.left(zl.run_id) == []


def test_a_run_whose_files_are_gone_from_its_host_is_lost(zl: Zl) -> None:
    run = zl.detached(WORK, hosts=["node1"])
    assert zl.status(run)["state"] == "RUNNING"
    zl.lab.run("node1", ["kill", "-9", *map(str, zl.agents("node1"))])
    zl.lab.run("node1", ["rm", "-rf", f"/root/zlaunch/runs/{run}"])
    assert zl.status(run)["state"] == "LOST"
    assert zl.left(run) == []


def test_a_resume_in_another_directory_of_its_hosts_copies_checkpoint_and_metrics(zl: Zl) -> None:
    save = (
        "mkdir -p checkpoints/step-20; echo weights > checkpoints/step-20/weights; touch checkpoints/step-20/COMPLETE"
    )
    metric = """echo '{"step": 20, "loss": 1.5}' > metrics.jsonl"""
    program = f"[ -e checkpoints ] && cat checkpoints/step-20/weights && exit 0; {save}; {metric}; exit 1"
    zl.ssh(program=program, hosts=["node1"], code=1)
    run = RunDir(zl.runs / zl.run_id)
    zl("resume", run.run_id, "--set", "ssh.workdir=/tmp/elsewhere")
    assert "weights" in zl("logs", run.run_id)
    assert [metric["step"] for metric in run.read_metrics()] == [20]


def test_a_second_launcher_does_not_replace_the_files_of_a_running_run(zl: Zl) -> None:
    run = zl.detached(WORK, hosts=["node1"])
    zl.all_running(run, ["node1"])
    RunDir(zl.runs / run).update_record(state="FAILED")  # as it was before the first of two resumes
    assert f"{run} is RUNNING" in zl("resume", run, code=2)  # its agent is asked, not the record
    RunDir(zl.runs / run).update_record(state="RUNNING")
    assert zl.status(run)["state"] == "RUNNING"
    zl("cancel", run, "--now")

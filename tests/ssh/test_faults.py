"""Faults on real hosts, one test each, with programs that need no torch."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from launcher.rundir.directory import RunDir, RunRecord
from tests.ssh.conftest import Zl

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(180)]

WORK = "echo at work; sleep 300 & wait"
"""A rank with a child process."""
STUBBORN = f"trap '' TERM; {WORK}"
"""A rank that ignores SIGTERM."""


def test_a_killed_rank_stops_all_others_and_is_named(zl: Zl) -> None:
    run = zl.detached(STUBBORN)
    zl.all_running(run)
    started = time.monotonic()
    zl.lab.run("node3", ["kill", "-9", str(min(zl.ranks("node3", run)))])
    zl.wait(lambda: zl.left(run) == [], 15)
    assert time.monotonic() - started < 15
    output = zl("status", run)
    assert "FAILED" in output
    assert "rank 2 on node3: signal 9, cause: killed" in output


def test_an_attached_run_with_a_killed_rank_exits_1_and_shows_why(zl: Zl) -> None:
    process = zl.start(*zl.ssh_words(program=WORK))
    zl.wait(lambda: zl.runs.exists() and list(zl.runs.iterdir()))
    zl.all_running(zl.run_id)
    zl.lab.run("node2", ["kill", "-9", str(min(zl.ranks("node2", zl.run_id)))])
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 1, output
    assert "rank 1 on node2: signal 9, cause: killed" in output
    assert zl.left(zl.run_id) == []


@pytest.mark.parametrize("host", ["node1", "node3"])
def test_a_killed_agent_stops_its_ranks_and_all_others(zl: Zl, host: str) -> None:
    run = zl.detached(WORK)
    zl.all_running(run)
    agent = zl.agents(host)[-1]
    zl.lab.run(host, ["kill", "-9", str(agent)])
    zl.wait(lambda: zl.left(run) == [], 15)
    assert zl.status(run)["state"] == "FAILED"
    assert "killed" in zl("status", run)


def test_killed_agent_and_warden_leave_no_rank_behind(zl: Zl) -> None:
    run = zl.detached(STUBBORN, hosts=["node1", "node2"])
    zl.all_running(run, ["node1", "node2"])
    zl.lab.run("node2", ["kill", "-9", *map(str, zl.agents("node2"))])
    zl.wait(lambda: zl.status(run)["state"] != "RUNNING", 20)
    assert zl.left(run) == []


def test_cancel_ends_a_stopped_warden_of_a_run_that_succeeded(zl: Zl) -> None:
    run = zl.detached("while [ ! -e /tmp/go-$ZLAUNCH_RUN_ID ]; do sleep 0.1; done", hosts=["node1", "node2"])
    zl.all_running(run, ["node1", "node2"])
    zl.lab.run("node2", ["kill", "-STOP", str(zl.agents("node2")[0])])
    for host in ("node1", "node2"):
        zl.lab.run(host, ["touch", f"/tmp/go-{run}"])
    zl.wait(lambda: zl.status(run)["state"] == "SUCCEEDED")
    assert zl.agents("node2")
    assert "SUCCEEDED" in zl("cancel", run)
    assert zl.left(run) == []
    assert "already SUCCEEDED" in zl("cancel", run)


def test_when_a_host_dies_the_others_stop_within_the_heartbeat_time_out(zl: Zl) -> None:
    run = zl.detached(WORK, "--set", "heartbeat_timeout=4")
    zl.all_running(run)
    zl.lab.kill_host("node4")
    alive = zl.lab.hosts[:3]
    zl.wait(lambda: not any(zl.ranks(host, run) or zl.agents(host) for host in alive), 4 + 15)
    output = zl("status", run)
    assert "FAILED" in output
    assert "node 3 (node4) is lost" in output


def test_when_the_first_host_dies_the_others_stop_and_the_run_has_failed(zl: Zl) -> None:
    run = zl.detached(WORK, "--set", "heartbeat_timeout=4")
    zl.all_running(run)
    zl.lab.kill_host("node1")
    others = zl.lab.hosts[1:]
    zl.wait(lambda: not any(zl.ranks(host, run) or zl.agents(host) for host in others), 4 + 20)
    assert zl.status(run)["state"] == "FAILED"


def test_an_elastic_run_continues_without_a_dead_host(zl: Zl) -> None:
    program = 'echo "world $WORLD_SIZE attempt $ZLAUNCH_RESTART_COUNT"; [ $ZLAUNCH_RESTART_COUNT = 1 ] || sleep 300'
    run = zl.detached(program, "--max-restarts", "1", "--set", "elastic=true", "--set", "heartbeat_timeout=3")
    zl.all_running(run)
    zl.lab.kill_host("node2")
    zl.wait(lambda: zl.status(run)["state"] == "SUCCEEDED", 40)
    assert "world 3 attempt 1" in zl("logs", run)
    events = [json.loads(line) for line in (zl.runs / run / "events.jsonl").read_text().splitlines()]
    assert [event["count"] for event in events if event["event"] == "restart"] == [1]


def test_a_network_cut_for_a_while_neither_stops_the_run_nor_starts_anything_twice(zl: Zl) -> None:
    process = zl.start(*zl.ssh_words("--set", "heartbeat_timeout=40", program="sleep 35; echo done $RANK"))
    zl.wait(lambda: zl.runs.exists() and list(zl.runs.iterdir()))
    zl.all_running(zl.run_id)
    before = {host: zl.agents(host) for host in zl.lab.hosts}
    zl.lab.cut("node3")
    cut = time.monotonic()
    assert zl.status(zl.run_id)["state"] == "RUNNING"
    time.sleep(max(0.0, cut + 20 - time.monotonic()))
    assert process.poll() is None
    assert {host: zl.agents(host) for host in zl.lab.hosts} == before
    zl.lab.restore("node3")
    assert zl.status(zl.run_id)["state"] == "RUNNING"
    shown = zl("status", zl.run_id)
    assert "RUNNING" in shown
    assert "restart" not in shown
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert (zl.runs / zl.run_id / "logs/node-2/rank-2.log").read_text() == "done 2\n"
    events = [json.loads(line) for line in (zl.runs / zl.run_id / "events.jsonl").read_text().splitlines()]
    assert len([event for event in events if event["event"] == "ranks_started"]) == 4


def test_a_killed_launcher_changes_nothing_for_the_run(zl: Zl) -> None:
    process = zl.start(*zl.ssh_words(program=WORK))
    zl.wait(lambda: zl.runs.exists() and list(zl.runs.iterdir()))
    run = zl.run_id
    zl.all_running(run)
    os.killpg(process.pid, signal.SIGKILL)
    time.sleep(2)
    assert zl.status(run)["state"] == "RUNNING"
    zl.all_running(run)
    zl("cancel", run, "--now")
    assert zl.left(run) == []
    assert zl.status(run)["state"] == "CANCELLED"


@pytest.mark.parametrize(
    "how", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM], ids=["ctrl-c", "terminal closed", "term"]
)
def test_ctrl_c_and_the_end_of_the_terminal_stop_the_run_on_all_hosts(zl: Zl, how: signal.Signals) -> None:
    process = zl.start(*zl.ssh_words(program="sleep 300 & wait"))
    zl.wait(lambda: zl.runs.exists() and list(zl.runs.iterdir()))
    zl.all_running(zl.run_id)
    time.sleep(0.5)
    os.killpg(process.pid, how)
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 130, output
    assert zl.left(zl.run_id) == []


def test_a_host_that_refuses_at_the_start_stops_what_was_started_elsewhere(zl: Zl) -> None:
    refuse = "import sys; sys.stderr.write('this host has a broken library'); sys.exit(7)"
    zl.lab.run("node3", ["sh", "-c", f'mkdir /tmp/broken; echo "{refuse}" > /tmp/broken/getopt.py'])
    try:
        output = zl.ssh("--set", 'ssh.setup=["export PYTHONPATH=/tmp/broken"]', program=WORK, code=1)
    finally:
        zl.lab.run("node3", ["rm", "-r", "/tmp/broken"])
    assert "node3: the agent did not start: this host has a broken library" in output
    assert all(f"{host}: started, and stopped again" in output for host in ("node1", "node2", "node4"))
    assert zl.left(zl.run_id) == []


def test_a_script_of_the_jobs_own_starts_the_agents_and_a_host_where_it_fails_stops_the_others(zl: Zl) -> None:
    lines = '#!/usr/bin/env bash\nset -eu\ncd -- "$(dirname -- "${BASH_SOURCE[0]}")"\nrank=$1; shift\n'
    lines += 'if [ "$(hostname)" = "${REFUSED:-}" ]; then echo no scratch disk here >&2; exit 7; fi\n'
    lines += "export FROM_SCRIPT=yes\n"
    lines += 'exec {{ launch.python | sh }} -S code/node/agent/__main__.py --run-dir . --node-rank "$rank" "$@"\n'
    (zl.home / "node.sh.j2").write_text(lines)
    words = ["--set", "node_template=node.sh.j2"]
    zl.ssh(*words, program='echo "by script: $FROM_SCRIPT"')
    assert zl("logs", zl.run_id).count("by script: yes") == 4
    export = 'ssh.setup=["export REFUSED=node3"]'
    output = zl.ssh(*words, "--set", export, program=WORK, code=1)
    assert "node3: the agent did not start: no scratch disk here" in output
    assert zl.left(zl.run_id) == []


def test_nothing_starts_if_one_host_cannot_take_the_files(zl: Zl) -> None:
    zl.lab.run("node2", ["sh", "-c", "mkdir /root/blocked; echo in the way > /root/blocked/runs"])
    output = zl.ssh("--workdir", "/root/blocked", program=WORK, code=1)
    (line,) = (line for line in output.splitlines() if line.strip().startswith("node2:"))
    assert "is a file, not a directory; move that file away, or use another directory" in line
    assert "node1: ok" in output
    assert zl.left(zl.run_id) == []


def test_processes_of_other_runs_and_other_users_are_never_touched(zl: Zl) -> None:
    decoys = {
        "torchrun": "exec -a torchrun sleep 200",
        "other-run": "ZLAUNCH_RUN_ID=other-20260101-000000-abcd exec sleep 201",
        "deepspeed": "exec -a 'python -u -m deepspeed.launcher.launch' sleep 202",
    }
    for name, command in decoys.items():
        zl.lab.run("node2", ["bash", "-c", f"( {command} ) >/dev/null 2>&1 & echo $! > /tmp/{name}"])
    other = zl.detached(WORK, hosts=["node2"])
    run = zl.detached(WORK)
    zl.all_running(run)
    zl("cancel", run, "--now")
    assert zl.ranks("node2", other)
    for name in decoys:
        zl.lab.run("node2", ["sh", "-c", f"kill -0 $(cat /tmp/{name}) && kill $(cat /tmp/{name})"])
    assert zl.status(other)["state"] == "RUNNING"
    zl("cancel", other, "--now")


def test_a_pid_that_another_process_has_taken_over_is_not_signaled(zl: Zl) -> None:
    run = zl.detached(WORK, hosts=["node1"])
    zl.all_running(run, ["node1"])
    record = f"/root/zlaunch/runs/{run}/nodes/node-0.json"
    zl.lab.run("node1", ["kill", "-9", *map(str, zl.agents("node1"))])
    zl.lab.run("node1", ["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $! > /tmp/stranger"])
    stranger = zl.lab.read("node1", "/tmp/stranger").strip()
    forge = f"import json; r=json.load(open('{record}')); r['pid']=r['warden']['pid']={stranger}; r['state']='RUNNING'"
    zl.lab.run("node1", [zl.lab.python, "-c", f"{forge}; json.dump(r, open('{record}', 'w'))"])
    assert zl.status(run)["state"] == "LOST"
    zl("cancel", run, code=None)
    zl.lab.run("node1", ["kill", "-0", stranger])
    zl.lab.run("node1", ["kill", stranger])


def test_a_run_whose_launcher_died_before_it_sent_anything_is_cancelled_and_resumed(zl: Zl) -> None:
    zl.ssh("--dry-run", "--check", program="echo at work", hosts=["node1"])
    run = RunDir(zl.runs / zl.run_id)
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend="ssh", created=time.time()))  # without hosts
    assert zl.status()["state"] == "PENDING"
    assert "CANCELLED" in zl("cancel", "last")
    assert "SUCCEEDED" in zl("resume", "last")
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend="ssh", created=time.time()))
    os.utime(run.run_json, (1.0, 1.0))
    assert zl.status()["state"] == "LOST"
    assert "SUCCEEDED" in zl("resume", "last")


def test_reap_kills_leftovers_of_a_dead_run_and_nothing_else(zl: Zl) -> None:
    alive = zl.detached(WORK, hosts=["node1"])
    left = "ZLAUNCH_RUN_ID=dead-20260101-000000-abcd ZLAUNCH_RUN_DIR=/nowhere ZLAUNCH_NODE_RANK=0 setsid sleep 300"
    zl.lab.run("node1", ["sh", "-c", f"{left} >/dev/null 2>&1 & setsid sleep 30123 >/dev/null 2>&1 & true"])
    zl.all_running(alive, ["node1"])
    words = zl.target(["node1", "node2"])
    listed = zl("reap", *words, "--dry-run")
    rows = [json.loads(line) for line in zl("reap", *words, "--dry-run", "--json").splitlines()]
    assert [(row["host"].partition(":")[0], len(row["found"]), row["ended"]) for row in rows] == [
        ("node1", 1, []), ("node2", 0, []),
    ]  # fmt: skip
    assert "found" in listed
    assert "dead-20260101-000000-abcd: sleep 300" in listed
    ended = zl("reap", *words)
    assert ended.count("killed") == 1
    assert "node2: no processes left over" in ended
    assert "no processes left over" in zl("reap", *words).splitlines()[0]
    assert len(zl.lab.processes("node1", "30123")) == 1
    zl.lab.run("node1", ["kill", zl.lab.processes("node1", "30123")[0].split()[0]])
    assert zl.status(alive)["state"] == "RUNNING"
    zl("cancel", alive, "--now")


def test_cancel_names_the_hosts_that_it_could_not_reach(zl: Zl) -> None:
    run = zl.detached(WORK, "--connect-timeout", "1", "--set", "heartbeat_timeout=15", hosts=["node1", "node2"])
    zl.all_running(run, ["node1", "node2"])
    zl.lab.cut("node2")
    output = zl("cancel", run, "--now", code=1)
    assert "node1: stopped" in output
    assert "node2: " in output
    zl.wait(lambda: zl.left(run) == [], 45)
    zl.lab.restore("node2")
    assert zl.status(run)["state"] in ("CANCELLED", "FAILED")


# ------------------------------------------------------------------------------------ before anything starts


@pytest.fixture
def ssh_config(zl: Zl) -> Path:
    """Copy the lab's ssh configuration, so that a test may change it."""
    file = zl.home / "ssh_config"
    known = zl.home / "known_hosts"
    known.write_text(zl.lab.known_hosts.read_text())
    file.write_text(zl.lab.ssh_config.read_text().replace(str(zl.lab.known_hosts), str(known)))
    return file


def refused(zl: Zl, *words: str, hosts: list[str] | None = None) -> str:
    """Return the output of a submission that must be refused with nothing started."""
    started = time.monotonic()
    output = zl.ssh(*words, program="true", hosts=hosts, code=1)
    assert time.monotonic() - started < 30
    assert not zl.runs.exists() or not list(zl.runs.iterdir())
    return output


def test_an_unknown_host_key_is_an_error_with_its_fingerprint_and_can_be_accepted(zl: Zl, ssh_config: Path) -> None:
    known = zl.home / "known_hosts"
    known.write_text("".join(line for line in known.read_text().splitlines(True) if not line.startswith("node2 ")))
    fingerprint = zl.lab.run("node1", ["ssh-keygen", "-lf", str(zl.lab.root / "ssh/hostkey2.pub")]).stdout.split()[1]
    words = ("--ssh-config", str(ssh_config))
    output = refused(zl, *words)
    assert f"node2: unknown host key ssh-ed25519 {fingerprint}" in output
    assert "ssh-keyscan" in output
    assert "node1: ok" in output
    zl.ssh(*words, "--accept-new-host-keys", program="true")
    assert known.read_text().splitlines()[-1].startswith("node2 ssh-ed25519 ")
    zl.ssh(*words, program="true")


def test_a_changed_host_key_is_an_error_even_if_new_ones_are_accepted(zl: Zl, ssh_config: Path) -> None:
    known = zl.home / "known_hosts"
    other = (zl.lab.root / "ssh/hostkey1.pub").read_text().split()[1]
    lines = [
        f"node2 ssh-ed25519 {other}\n" if line.startswith("node2 ") else line
        for line in known.read_text().splitlines(True)
    ]
    known.write_text("".join(lines))
    output = refused(zl, "--ssh-config", str(ssh_config), "--accept-new-host-keys")
    assert "node2: HOST KEY CHANGED" in output
    assert "ssh-keygen -R node2" in output


def test_a_wrong_key_a_closed_port_and_a_wrong_name_give_different_errors(zl: Zl, ssh_config: Path) -> None:
    zl.lab.run("node1", ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{zl.lab.shared}/wrong-{zl.home.name}"])
    wrong = f"{zl.lab.shared}/wrong-{zl.home.name}"
    right = f"  IdentityFile {zl.lab.root}/ssh/id_ed25519\n"
    keys = f"Host node1\n  IdentityFile {wrong}\nHost node2\n{right}Host *\n"
    ssh_config.write_text(ssh_config.read_text().replace(right, "").replace("Host *\n", keys, 1))
    output = refused(
        zl, "--ssh-config", str(ssh_config), hosts=["node1", "node2", f"{zl.lab.address('node3')}:2299", "no-such-host"]
    )
    assert f"node1: root@{zl.lab.address('node1')}:22: permission denied (keys tried: {wrong})" in output
    assert "node2: ok" in output
    assert "connection refused; is sshd running there?" in output
    assert "no-such-host: the name no-such-host does not resolve" in output


def test_no_python_a_full_disk_and_a_wrong_clock_are_named_per_host(zl: Zl) -> None:
    output = refused(zl, "--python", "/opt/none/bin/python")
    assert output.count("no Python there") == 4
    assert "name the environment's interpreter with --python" in output

    zl.lab.run("node2", ["sh", "-c", "mkdir -p /root/small; mount -t tmpfs -o size=1m tmpfs /root/small"])
    zl.lab.run("node2", ["sh", "-c", "head -c 1048576 /dev/zero > /root/small/full || true"])
    output = refused(zl, "--workdir", "/root/small")
    assert "node2: working directory: " in output
    assert "the disk is full (0 B of 1 MiB" in output
    assert "free space on /root/small" in output
    assert "node1: ok" in output
    zl.lab.run("node2", ["umount", "/root/small"])

    wrapper = "/usr/local/bin/python-of-the-test"
    for host in zl.lab.hosts:
        shift = "faketime -f +2h " if host == "node4" else ""
        zl.lab.run(
            host,
            [
                "sh",
                "-c",
                f"printf '#!/bin/sh\\nexec {shift}{zl.lab.python} \"$@\"\\n' > {wrapper}; chmod 755 {wrapper}",
            ],
        )
    output = refused(zl, "--python", wrapper)
    assert "node4: clock is 7200 s ahead" in output
    assert "node3: ok" in output


def test_a_silent_host_is_an_error_after_the_connect_time_out(zl: Zl) -> None:
    zl.lab.cut("node3")
    started = time.monotonic()
    output = refused(zl, "--connect-timeout", "2")
    assert time.monotonic() - started < 12
    assert f"node3: root@{zl.lab.address('node3')}:22: no answer within 2 s" in output
    assert "node1: ok" in output

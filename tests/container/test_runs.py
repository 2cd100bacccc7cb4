"""Runs inside the image, for real, on every backend; afterwards no container of the run is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.rundir import logs
from launcher.rundir.directory import RunDir
from tests.container.conftest import Engine, Zl
from tests.testbed.bed import Farm, Slurm

pytestmark = [pytest.mark.container, pytest.mark.timeout(1200)]

SMOKE = ("--smoke", "--device", "cpu")
COOPERATIVE = """
import os, pathlib, sys, time
here = pathlib.Path(os.environ["ZLAUNCH_RUN_DIR"])
print("inside" if pathlib.Path("/opt/zlaunch/app").exists() else "outside", os.getuid(), flush=True)
while not (here / "control/stop").exists():
    time.sleep(0.1)
sys.exit(75)
"""
SAY = (
    'test -e /opt/zlaunch/app && echo "inside rank=$RANK/$WORLD_SIZE node=$NODE_RANK secret=${#SECRET_OF_THE_TEST}'
    ' job=$SLURM_JOB_ID"'
)


def in_docker(image: str) -> tuple[str, ...]:
    return ("--container", "docker", "--image", image)


def wait(done: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def rank_lines(run: RunDir) -> dict[int, str]:
    return {block.rank: block.lines[-1] for block in logs.follow_logs(run) if block.rank is not None}


def metrics(run: RunDir) -> list[dict]:
    file = run.path / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if '"loss"' in line]


def events(run: RunDir, name: str) -> list[dict]:
    lines = (run.path / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def test_a_smoke_run_saves_on_one_signal_stops_on_another_and_resumes_in_the_container(
    zl: Zl, engine: Engine, image: str
) -> None:
    long = ("--set", "train.max_steps=60", "--set", "train.checkpoint_every=1000")
    run_id = zl.result("local", *SMOKE, *long, "--procs", "2", *in_docker(image), "--detach")["run"]
    run = RunDir(zl.runs / run_id)
    wait(lambda: metrics(run), 180)
    agent = json.loads((run.path / "nodes/node-0.json").read_text())["pid"]
    os.kill(agent, signal.SIGUSR1)
    wait(lambda: events(run, "checkpoint"))
    saved = events(run, "checkpoint")[0]["step"]
    wait(lambda: metrics(run)[-1]["step"] > saved)  # it goes on
    os.kill(agent, signal.SIGUSR2)
    wait(lambda: engine.containers() == [])
    stopped = events(run, "checkpoint")[-1]["step"]
    assert stopped > saved
    assert (run.path / f"checkpoints/step-{stopped}/COMPLETE").exists()
    wait(lambda: json.loads(zl("status", run_id, "--json").splitlines()[-1])["state"] == "CANCELLED")

    result = zl.result("resume", run_id)
    assert (result["state"], result["world_size"]) == ("SUCCEEDED", 2)
    assert events(run, "resumed")[-1]["step"] == stopped
    assert [line["step"] for line in metrics(run)] == list(range(1, 61))
    assert result["loss_last"] < metrics(run)[0]["loss"]
    plan = json.loads((run.path / "plan.json").read_text())
    # The image is pinned by content, and what it wrote belongs to the user.
    assert plan["launch"]["container"]["image"] == engine("docker", "inspect", "-f", "{{.Id}}", image).strip()
    assert {path.stat().st_uid for path in run.path.rglob("*")} == {os.getuid()}
    assert engine.containers() == []


def test_cancel_reaches_the_program_inside_and_leaves_no_container(zl: Zl, engine: Engine, small_image: str) -> None:
    words = ("--device", "cpu", "--procs", "2", *in_docker(small_image), "--detach")
    run_id = zl.result("local", *words, "--", "python3", "-c", COOPERATIVE)["run"]
    run = RunDir(zl.runs / run_id)
    wait(lambda: engine.containers() == [f"zlaunch-{run_id}-0"])
    wait(lambda: len(rank_lines(run)) == 2)
    assert set(rank_lines(run).values()) == {f"inside {os.getuid()}"}
    zl("cancel", run_id)
    assert engine.containers() == []
    assert json.loads(zl("status", run_id, "--json").splitlines()[-1])["state"] == "CANCELLED"


def test_ctrl_c_ends_the_container_and_what_is_in_it(zl: Zl, engine: Engine, small_image: str) -> None:
    words = ("--device", "cpu", *in_docker(small_image))
    process = zl.start("local", *words, "--", "sh", "-c", "trap '' TERM; echo deaf; sleep 300")
    try:
        wait(lambda: engine.containers() != [])
        (run,) = (RunDir(path) for path in zl.runs.iterdir())
        wait(lambda: rank_lines(run))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode in (1, 130)
    assert engine.containers() == []


def test_a_killed_agent_takes_its_container_along(zl: Zl, engine: Engine, small_image: str) -> None:
    words = ("--device", "cpu", *in_docker(small_image), "--detach")
    run_id = zl.result("local", *words, "--", "sleep", "300")["run"]
    wait(lambda: engine.containers() != [])
    record = json.loads((zl.runs / run_id / "nodes/node-0.json").read_text())
    os.kill(record["pid"], signal.SIGKILL)
    wait(lambda: engine.containers() == [], 40)
    assert json.loads(zl("status", run_id, "--json").splitlines()[-1])["state"] == "FAILED"


def test_secrets_reach_the_ranks_and_neither_the_engines_argv_nor_its_records(
    zl: Zl, engine: Engine, small_image: str
) -> None:
    secret = "never-to-be-written"
    words = ("--device", "cpu", *in_docker(small_image), "--detach", "--set", "secrets=[SECRET_OF_THE_TEST]")
    run_id = zl.result("local", *words, "--", "sh", "-c", SAY + "; sleep 60", SECRET_OF_THE_TEST=secret)["run"]
    run = RunDir(zl.runs / run_id)
    wait(lambda: rank_lines(run))
    assert f"secret={len(secret)}" in rank_lines(run)[0]
    assert secret not in engine("docker", "inspect", *engine.containers())
    assert subprocess.run(["grep", "-rl", secret, run.path], capture_output=True, check=False).stdout == b""
    zl("cancel", run_id)


def test_two_hosts_over_ssh_share_the_engine_and_train_in_the_image(
    zl: Zl, engine: Engine, image: str, sshd_farm: Callable[[int], Farm]
) -> None:
    farm = sshd_farm(2)
    where = ("--hosts", ",".join(farm.hosts), "--ssh-config", farm.ssh_config, "--python", sys.executable)
    docker_host = f"env.DOCKER_HOST={engine.docker.host}"
    absent = zl("ssh", *SMOKE, *where, *in_docker("nobody/nothing:1"), "--set", docker_host, code=1)
    assert "the hosts cannot run the image: 2 of 2" in absent
    assert "no image nobody/nothing:1 here" in absent
    result = zl.result("ssh", *SMOKE, *where, *in_docker(image), "--set", docker_host)
    assert (result["state"], result["world_size"]) == ("SUCCEEDED", 2)
    assert engine.containers() == []


def test_hosts_with_another_image_under_the_same_name_are_named_by_doctor_and_refused_by_a_run(
    zl: Zl, sshd_farm: Callable[[int], Farm]
) -> None:
    farm = sshd_farm(3)
    programs = zl.home / "programs"
    programs.mkdir()
    tool = programs / "docker"  # the farm's hosts share this machine, and so one engine: this one tells them apart
    tool.write_text("#!/bin/sh\n[ $FARM_HOST = node3 ] && echo sha256:bb || echo sha256:aa\n")
    tool.chmod(0o755)
    where = ("--hosts", ",".join(farm.hosts), "--ssh-config", farm.ssh_config, "--python", sys.executable)
    words = (*SMOKE, *where, *in_docker("zl:1"), "--set", f"env.PATH={programs}:/usr/bin:/bin")
    refused = zl("ssh", *words, code=1)
    assert "the hosts cannot run the image: 1 of 3" in refused
    assert "its image is sha256:bb, but sha256:aa on most hosts" in refused
    doctor = zl("doctor", "ssh", *words, "--json", code=1)
    levels = {row["host"]: row["image"]["level"] for row in map(json.loads, doctor.splitlines())}
    assert levels == {"node1": "ok", "node2": "ok", "node3": "bad"}


@pytest.mark.slurm
def test_two_nodes_of_slurm_train_in_the_image(zl: Zl, engine: Engine, image: str, slurm: Slurm) -> None:
    zl.environ.update(slurm.environment, XDG_CACHE_HOME=str(zl.home / "cache"))
    words = ("--nodes", "2", *in_docker(image), "--set", f"env.DOCKER_HOST={engine.docker.host}", "--wait")
    result = zl.result("slurm", *SMOKE, *words)
    assert (result["state"], result["world_size"]) == ("SUCCEEDED", 2)
    assert engine.containers() == []


@pytest.fixture
def unpacked(tmp_path: Path) -> Iterator[Path]:
    """Where an image is unpacked to: too large to be kept."""
    yield tmp_path / "image"
    shutil.rmtree(tmp_path / "image", ignore_errors=True)


@pytest.mark.slurm
def test_charliecloud_runs_the_ranks_of_two_slurm_nodes_in_the_unpacked_image(
    zl: Zl, small_image: str, slurm: Slurm, unpacked: Path
) -> None:
    zl("image", "save", small_image, unpacked, "--directory")
    zl.environ.update(slurm.environment, XDG_CACHE_HOME=str(zl.home / "cache"))
    words = ("--device", "cpu", "--nodes", "2", "--container", "charliecloud", "--image", unpacked, "--wait")
    result = zl.result("slurm", *words, "--", "sh", "-c", SAY)
    assert result["state"] == "SUCCEEDED"
    lines = rank_lines(RunDir(Path(result["directory"])))
    assert {rank: line.partition(" secret")[0] for rank, line in lines.items()} == {
        rank: f"inside rank={rank}/2 node={rank}" for rank in (0, 1)
    }
    assert all(not line.endswith("job=") for line in lines.values())

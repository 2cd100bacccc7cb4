"""The real training over real SSH: the smoke job on CPU ranks over gloo, one process per host."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from launcher.machine import installation
from tests.ssh.conftest import Zl
from tests.testbed.bed import Lab

pytestmark = [pytest.mark.ssh, pytest.mark.train, pytest.mark.timeout(580)]
pytest.importorskip("torch")


def losses(run: Path) -> dict[int, float]:
    """Return {step: loss}; the last value counts where a restart trained a step twice."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def alone(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of the same job on one rank of this machine."""
    zl = Zl(lab, tmp_path_factory.mktemp("alone"))
    zl("local", "--smoke", "--device", "cpu", "--procs", "1", timeout=300)
    found = losses(zl.runs / zl.run_id)
    assert len(found) == 12
    return found


def same(found: dict[int, float], reference: dict[int, float]) -> None:
    assert found == pytest.approx(reference, rel=2e-4)


def events(zl: Zl, name: str) -> list[dict[str, Any]]:
    file = zl.runs / zl.run_id / "events.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def test_four_hosts_train_with_zero_2_and_zero_3_as_one_rank_does_and_data_is_sent_once(
    zl: Zl, alone: dict[int, float]
) -> None:
    # The hosts see this machine's /usr and the checkout, but not its /tmp: copies there have to be sent.
    for name in ("train", "eval"):
        shutil.copyfile(installation.path("templates") / "smoke.jsonl", zl.home / f"{name}.jsonl")
    data = ("--train-data", "train.jsonl", "--eval-data", "eval.jsonl")
    listing = ["find", "/root/zlaunch/data", "-type", "f", "-printf", "%p %i %T@\\n"]

    def stored() -> dict[str, set[str]]:
        return {host: set(zl.lab.run(host, listing, check=False).stdout.splitlines()) for host in zl.lab.hosts}

    earlier = stored()  # runs of other tests left files, too
    output = zl.ssh("--smoke", "--zero-stage", "2", *data, timeout=400)
    assert "SUCCEEDED" in output
    run = zl.runs / zl.run_id
    same(losses(run), alone)
    assert (run / "adapter/adapter_config.json").exists()
    assert json.loads((run / "result.json").read_text())["adapter_reloads"] is True
    sent = stored()
    new = {host: sent[host] - earlier[host] for host in sent}
    assert {host: len(files) for host, files in new.items()} == dict.fromkeys(zl.lab.hosts, 1), new  # one content

    zl.ssh("--smoke", "--zero-stage", "3", *data, timeout=400)
    same(losses(zl.runs / zl.run_id), alone)
    assert stored() == sent
    assert zl.left(zl.run_id) == []


def test_unequal_slots_train_as_one_rank_does(zl: Zl, alone: dict[int, float]) -> None:
    (zl.home / "hosts").write_text("node2 slots=1\nnode3 slots=3\n")
    zl.ssh("--smoke", "--hostfile", "hosts", hosts=[], timeout=400)
    plan = json.loads((zl.runs / zl.run_id / "plan.json").read_text())
    assert [node["procs"] for node in plan["launch"]["nodes"]] == [1, 3]
    same(losses(zl.runs / zl.run_id), alone)


def test_ctrl_c_saves_a_checkpoint_on_the_hosts_and_resume_continues_from_it(zl: Zl, alone: dict[int, float]) -> None:
    words = ["--smoke", "--set", "train.max_steps=60", "--set", "train.checkpoint_every=0"]
    process = zl.start(*zl.ssh_words(*words, hosts=["node1", "node2"]))
    zl.wait(lambda: zl.runs.exists() and list(zl.runs.iterdir()))
    metrics = zl.runs / zl.run_id / "metrics.jsonl"
    zl.wait(lambda: metrics.exists() and len(losses(metrics.parent)) >= 3, 200)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert zl.left(zl.run_id) == []
    done = max(losses(metrics.parent))
    assert done < 60
    zl("resume", "last", timeout=300)
    assert [event["step"] for event in events(zl, "resumed")] == [done]
    found = losses(metrics.parent)
    assert max(found) == 60
    same({step: found[step] for step in alone}, alone)


def test_when_a_host_dies_training_continues_from_its_checkpoint_on_the_other_hosts(
    zl: Zl, alone: dict[int, float]
) -> None:
    slow = ["--set", "train.checkpoint_every=2", "--set", "train.max_steps=60"]
    elastic = ["--max-restarts", "1", "--set", "elastic=true", "--set", "heartbeat_timeout=4"]
    process = zl.start(*zl.ssh_words("--smoke", *slow, *elastic, hosts=["node1", "node2"]))
    zl.wait(lambda: zl.runs.exists() and list(zl.runs.iterdir()))
    run = zl.runs / zl.run_id
    zl.wait(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) >= 4, 200)
    zl.lab.kill_host("node2")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert [event["cause"] for event in events(zl, "restart")] == ["lost_host"]
    assert events(zl, "resumed")[-1]["step"] >= 2
    found = losses(run)
    assert max(found) == 60
    same({step: found[step] for step in alone}, alone)


def test_when_the_first_host_dies_training_continues_from_the_copy_on_another_and_the_host_can_join_again(
    zl: Zl, alone: dict[int, float]
) -> None:
    slow = ["--set", "train.checkpoint_every=2", "--set", "train.max_steps=300"]
    elastic = ["--max-restarts", "1", "--set", "elastic=true", "--set", "heartbeat_timeout=4"]
    process = zl.start(*zl.ssh_words("--smoke", *slow, *elastic, hosts=["node1", "node2"]))
    zl.wait(lambda: zl.runs.exists() and list(zl.runs.iterdir()))
    run = zl.runs / zl.run_id
    zl.wait(lambda: len(events(zl, "checkpoint")) >= 2, 200)
    assert events(zl, "checkpoint")[0]["copies"] == 1
    zl.lab.kill_host("node1")
    zl.wait(lambda: events(zl, "resumed"), 200)
    copied = events(zl, "resumed")[-1]["step"]
    assert copied >= 2
    zl.wait(lambda: max(losses(run)) > copied + 2, 100)
    assert zl.ranks("node2", zl.run_id)
    zl.lab.restore("node1")
    again = zl.start("resume", zl.run_id, "--rejoin", "--set", f"train.max_steps={copied + 40}")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    assert "node1 cannot be reached, and the run goes on without it" in output
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert events(zl, "resumed")[-1]["step"] > copied
    assert zl.status(zl.run_id)["world_size"] == 2
    found = losses(run)
    assert max(found) == copied + 40
    assert sorted(found) == list(range(1, copied + 41)), "a step is missing"
    same({step: found[step] for step in alone}, alone)


def test_a_rank_that_hangs_on_the_second_host_is_found_and_the_run_restarts(zl: Zl) -> None:
    values = ("hang_timeout=8", "checkpoint_every=2", "max_steps=60", "engine=peft")
    settings = [word for value in values for word in ("--set", f"train.{value}")]
    process = zl.start(*zl.ssh_words("--smoke", *settings, "--max-restarts", "1", hosts=["node1", "node2"]))
    zl.wait(lambda: zl.runs.exists() and list(zl.runs.iterdir()))
    run = zl.runs / zl.run_id
    zl.wait(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) >= 4, 200)
    zl.lab.run("node2", ["kill", "-STOP", str(min(zl.ranks("node2", zl.run_id)))])
    output, _ = process.communicate(timeout=450)
    assert process.returncode == 0, output
    assert [event["cause"] for event in events(zl, "restart")] == ["hang"]
    waiting, stopped = sorted(events(zl, "hang")[0]["stacks"], key=lambda group: group["odd"])
    assert (waiting["ranks"], stopped["ranks"], stopped["state"]) == ([0], [1], "stopped by a signal")
    assert any("train/dist.py" in frame for frame in waiting["frames"])
    assert "rank 1 <- differs" in zl("status", "last")
    zl("logs", "last")
    assert "do_signal_stop" in (run / "logs/node-1/stack-1.txt").read_text()
    assert max(losses(run)) == 60
    assert zl.left(zl.run_id) == []


TORCHRUN = (
    "cd {run}; PYTHONPATH=code {python} -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank {rank} "
    "--master-addr node1 --master-port {port} -m train --config train.json"
)
"""As docs/nodes.md has it."""


@pytest.mark.parametrize("command", ["bash {run}/deepspeed.sh {rank}", TORCHRUN], ids=["deepspeed.sh", "torchrun"])
def test_the_run_directory_can_be_started_by_hand_with_the_launchers_of_others(
    zl: Zl, alone: dict[int, float], command: str
) -> None:
    hosts = ["node1", "node2"]
    zl.ssh("--smoke", "--zero-stage", "2", "--set", "train.max_steps=4", "--dry-run", "--check", hosts=hosts)
    run = zl.runs / zl.run_id
    assert "--no_ssh --no_local_rank --node_rank" in (run / "deepspeed.sh").read_text()
    by_hand = zl.lab.shared / f"by-hand-{zl.run_id}"
    train = json.loads((run / "train.json").read_text())
    origin = {"train": train["data"]["train"], "eval": train["data"]["eval"]}
    shutil.copytree(run, by_hand)
    for link in origin.values():  # what `zlaunch ssh` would have linked on the host
        (by_hand / link).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(installation.path("templates") / "smoke.jsonl", by_hand / link)
    for rank, host in reversed(list(enumerate(hosts))):
        port = json.loads((run / "plan.json").read_text())["launch"]["master_port"]
        text = command.format(run=by_hand, rank=rank, python=zl.lab.python, port=port)
        started = f"(export OMP_NUM_THREADS=1; {text}) >{by_hand}/ds-{rank}.log 2>&1"
        zl.lab.run(host, ["sh", "-c", f"( {started}; echo $? > {by_hand}/exit-{rank} ) >/dev/null 2>&1 &"])
    zl.wait(lambda: (by_hand / "exit-0").exists() and (by_hand / "exit-1").exists(), 250)
    log = (by_hand / "ds-0.log").read_text(errors="replace")
    assert (by_hand / "exit-0").read_text().strip() == "0", log[-3000:]
    found = losses(by_hand)
    same(found, {step: alone[step] for step in range(1, 5)})

"""tests/bench/nodes: what its table says, and all of it on two hosts with CPU ranks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.beds.campaigns import WHOLE
from tests.bench.nodes import __main__ as bench
from tests.bench.nodes.hosts import Hosts
from tests.bench.nodes.runs import OutOfTimeError, RunFailedError, Runner
from tests.bench.nodes.speeds import WAYS, _beside, _row, ways_on
from tests.bench.nodes.tables import Table
from tests.testbed import slots
from tests.testbed.bed import Lab


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path / "nodes", "two hosts")


@pytest.fixture
def runner(table: Table, tmp_path: Path) -> Runner:
    hosts = Hosts(["a", "b"], 2, "cpu", tmp_path)
    return Runner(hosts, tmp_path, tmp_path, table, time.monotonic() + 1000)


def test_each_row_is_on_the_disk_before_the_next_run(table: Table) -> None:
    table.add("speed", "one rank", tokens_per_second=1234.4)
    table.add("speed", "DDP on 2 x 2", tokens_per_second=4000.0, of_one_host=0.957, ok=True)
    text = table.out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| speed | tokens/s | of one host | as expected |" in text
    assert "| one rank | 1,234 |  |  |" in text
    assert "| DDP on 2 x 2 | 4,000 | 96% | yes |" in text
    lines = table.out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["what"] for line in lines] == ["one rank", "DDP on 2 x 2"]
    assert table.failed == []


def test_a_run_that_fails_is_a_row_and_the_part_goes_on(runner: Runner) -> None:
    def fails() -> dict[str, Any]:
        raise RunFailedError("exit status 1; no GPU")

    def late() -> dict[str, Any]:
        raise OutOfTimeError

    _row(runner, "speed", "DDP", fails)
    _row(runner, "speed", "ZeRO-2", late)
    assert runner.table.failed == ["speed: DDP"]
    assert [row["note"] for row in runner.table.rows] == ["exit status 1; no GPU", "not run: no time was left"]


def test_a_run_gets_the_time_that_is_left(runner: Runner) -> None:
    runner.deadline = time.monotonic() + 30
    assert 29 < runner.time_left(150) <= 30
    assert runner.time_left(10) == 10
    runner.deadline = time.monotonic() + 10
    with pytest.raises(OutOfTimeError):
        runner.time_left(10)


def test_losses_that_differ_from_those_of_one_rank_are_not_as_expected() -> None:
    alone = {"losses": [5.0, 4.0], "tokens_per_second": 100.0}
    same = _beside({"losses": [5.0, 4.001], "tokens_per_second": 360.0}, alone, 4)
    assert (same["ok"], same["of_one_rank"]) == (True, 0.9)
    assert _beside({"losses": [5.0, 4.2], "tokens_per_second": 360.0}, alone, 4)["ok"] is False


def test_weights_shared_by_all_hosts_differ_only_where_a_host_has_several_ranks(runner: Runner) -> None:
    every = ",".join(WAYS)
    assert ways_on(runner.hosts, every) == list(WAYS)
    runner.hosts.per_host = 1
    assert "zero3-all" not in ways_on(runner.hosts, every)


@pytest.mark.parametrize("words", [["sped"], ["speed", "--ways", "zero4"], ["--hosts", "a,b"]])
def test_words_that_mean_nothing_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        bench.parsed(words)
    assert refused.value.code == 2


@pytest.mark.ssh
def test_hosts_with_gpus_of_their_own_see_no_other_device(lab: Lab) -> None:
    """`lab` checks that this machine can carry hosts at all."""
    slot = slots.acquire()
    alone = Lab(slot.root / "lab", slot.tag, slot.lab_network, 1, gpus=0, mtu=9000)
    try:
        alone.start()
        assert "nvidia0" not in alone.run("node1", ["ls", "/dev"]).stdout.split()
        assert alone.run("node1", ["mknod", "/dev/nvidia0", "c", "195", "0"], check=False).returncode != 0
        uses = "echo > /dev/null && touch /dev/shm/x && head -c 1 /dev/urandom | wc -c"
        assert alone.run("node1", ["sh", "-c", uses]).stdout.strip() == "1"
        assert alone.read("node1", "/sys/class/net/eth0/mtu").strip() == "9000"
        assert alone.run("node1", ["ls", "/sys/class/net"]).stdout.split() == ["eth0", "lo"]
    finally:
        alone.stop()
        slot.release()


@pytest.mark.long
@pytest.mark.ssh
@pytest.mark.timeout(1500)
def test_all_of_it_runs_on_two_hosts_with_cpu_ranks(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "nodes"
    parts = ["smoke", "losses", "faults", "resume", "slurm"] if WHOLE else ["smoke"]
    assert bench.main([*parts, "--device", "cpu", "--minutes", "22", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["part"] for row in rows} == set(parts)
    assert not [row for row in rows if "not run" in row.get("note", "")]

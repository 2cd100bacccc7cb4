"""`zlaunch doctor net` on real hosts: what gloo reaches between them, by which interface, and which host is slow."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.ssh.conftest import Zl
from tests.testbed.bed import Lab

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(300)]


@pytest.fixture
def slow_host(lab: Lab) -> Iterator[str]:
    """node3, whose cable carries 200 Mbit/s."""
    shaping = ["root", "tbf", "rate", "200mbit", "burst", "64kb", "latency", "50ms"]
    lab.run("node3", ["tc", "qdisc", "add", "dev", "eth0", *shaping])
    yield "node3"
    lab.run("node3", ["tc", "qdisc", "del", "dev", "eth0", "root"], check=False)


def test_the_rate_between_hosts_is_measured_and_later_plans_reckon_with_it(zl: Zl) -> None:
    zl.environ["XDG_CACHE_HOME"] = str(zl.home / "cache")
    hosts = zl.lab.hosts[:2]
    found = json.loads(zl("doctor", "net", *zl.target(hosts), "--device", "cpu", "--json").splitlines()[-1])
    assert (found["hosts"], found["backend"]) == (hosts, "gloo")
    assert [host["interface"] for host in found["places"]] == ["eth0", "eth0"]
    largest = max(map(int, found["all_reduce"]))
    assert all(host["moved"]["eth0"] > largest for host in found["places"])  # the bytes went this way
    assert found["bytes_per_second"] > 1e7
    assert 0 < found["latency_seconds"] < 1
    assert not list(zl.runs.glob("doctor-net*"))  # what measured is no run of the user
    assert not [host for host in hosts if "doctor-net" in zl.lab.run(host, ["ls", "/root/zlaunch/runs"]).stdout]
    kept = json.loads((zl.home / "cache/zlaunch/network.json").read_text())
    assert [(one["hosts"], one["bytes_per_second"]) for one in kept] == [(hosts, found["bytes_per_second"])]


def test_a_slow_host_is_named_among_three(zl: Zl, slow_host: str) -> None:
    zl.environ["XDG_CACHE_HOME"] = str(zl.home / "cache")
    text = zl("doctor", "net", *zl.target(zl.lab.hosts[:3]), "--device", "cpu", timeout=200)
    assert "times slower than the others" in text
    assert f"{slow_host}: with others:" in text
    assert "node1: with others:" not in text
    assert "eth0" in text


def test_one_host_has_no_network_to_measure(zl: Zl) -> None:
    text = zl("doctor", "net", *zl.target(zl.lab.hosts[:1]), "--device", "cpu", code=2)
    assert "a network needs two hosts" in text

"""`zlaunch doctor ssh` on real hosts, healthy and faulty."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.ssh.conftest import Zl

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(120)]


def table(zl: Zl, *words: str, code: int) -> dict[str, dict[str, Any]]:
    output = zl("doctor", "ssh", *zl.target(), "--device", "cpu", "--smoke", "--json", *words, code=code)
    return {row["host"]: row for row in map(json.loads, output.splitlines())}


def test_healthy_hosts_block_nothing(zl: Zl) -> None:
    pytest.importorskip("torch")
    (zl.home / "records.jsonl").write_text('{"instruction": "1+1", "output": "2"}\n')
    rows = table(zl, "--train-data", "records.jsonl", "--set", "data.eval=null", code=0)
    assert list(rows) == zl.lab.hosts
    assert {cell["level"] for row in rows.values() for key, cell in row.items() if isinstance(cell, dict)} == {"ok"}
    assert rows["node3"]["filesystem"]["text"] == "own"
    assert rows["node1"]["data"]["text"] == "38 B to send"
    assert list(zl.runs.iterdir() if zl.runs.exists() else []) == []


def test_a_shared_directory_is_recognized(zl: Zl) -> None:
    rows = table(zl, "--workdir", str(zl.lab.shared / "doctor"), code=0)
    assert {row["filesystem"]["text"] for row in rows.values()} == {"shared with 3"}


def test_blocking_cells_are_red_with_advice_and_other_hosts_keep_their_rows(zl: Zl) -> None:
    zl.lab.kill_host("node4")
    zl.lab.run("node3", ["ip", "route", "add", "blackhole", f"{zl.lab.address('node2')}/32"])
    zl.lab.run("node1", ["sh", "-c", "mkdir -p /root/full; mount -t tmpfs -o size=4m tmpfs /root/full"])
    try:
        rows = table(zl, "--workdir", "/root/full", "--connect-timeout", "2", code=1)
        text = zl("doctor", "ssh", *zl.target(), "--smoke", "--device", "cpu", "--connect-timeout", "2", code=1)
    finally:
        zl.lab.run("node3", ["ip", "route", "del", "blackhole", f"{zl.lab.address('node2')}/32"])
        zl.lab.run("node1", ["umount", "/root/full"])
    assert rows["node4"]["login"]["level"] == "bad"
    assert "is sshd running there?" in rows["node4"]["login"]["advice"]
    assert rows["node3"]["network"]["level"] == "bad"
    assert "cannot connect to node2" in rows["node3"]["network"]["advice"]
    assert rows["node1"]["disk"]["level"] == "bad"
    assert rows["node2"]["disk"]["level"] == "ok"
    assert "node3: network: cannot connect to node2" in text

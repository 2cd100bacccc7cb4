"""Hosts that have IPv6 addresses only, alone and together."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ssh.conftest import Zl

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(180)]

HOSTS = ("node1", "node2")


def address(zl: Zl, host: str) -> str:
    return f"fd97:{zl.lab.network.split('.')[2]}::1{host[-1]}"


@pytest.fixture
def config(zl: Zl, tmp_path: Path) -> Iterator[Path]:
    """An ssh configuration for two hosts without IPv4, whose sshd listens on port 2222."""
    bridge = [f"fd97:{zl.lab.network.split('.')[2]}::1/64", "dev", f"{zl.lab.tag}br", "nodad"]
    subprocess.run(["ip", "addr", "add", *bridge], check=True)
    lines = []
    for host in HOSTS:
        number, ipv4 = host[-1], f"{zl.lab.address(host)}/24"
        zl.lab.run(host, ["ip", "addr", "add", f"{address(zl, host)}/64", "dev", "eth0", "nodad"])
        zl.lab.run(host, ["ip", "addr", "del", ipv4, "dev", "eth0"])
        text = (zl.lab.root / f"ssh/sshd{number}.conf").read_text().replace("PidFile none", "PidFile /run/six.pid")
        text = text.replace("Port 22\n", "Port 2222\n").replace(
            f"ListenAddress {zl.lab.address(host)}", "ListenAddress ::"
        )
        file = zl.lab.shared / f"six-{number}.conf"
        file.write_text(text)
        zl.lab.run(host, ["/usr/sbin/sshd", "-f", str(file)])
        for name in (f"six{number}", address(zl, host)):
            lines += [f"Host {name}", f"  HostName {address(zl, host)}", "  Port 2222", f"  HostKeyAlias {host}"]
    (tmp_path / "six").write_text("\n".join([*lines, zl.lab.ssh_config.read_text()]))
    yield tmp_path / "six"
    for host in HOSTS:
        zl.lab.run(host, ["sh", "-c", "kill $(cat /run/six.pid)"])
        zl.lab.run(host, ["ip", "addr", "add", f"{zl.lab.address(host)}/24", "dev", "eth0"])
        zl.lab.run(host, ["ip", "addr", "del", f"{address(zl, host)}/64", "dev", "eth0"])
    subprocess.run(["ip", "addr", "del", *bridge[:3]], check=True)


def test_hosts_without_ipv4_run_alone_and_together(zl: Zl, config: Path) -> None:
    words = ("--ssh-config", str(config))
    output = zl.ssh(*words, program="echo rank $RANK of $WORLD_SIZE", hosts=["six1"])
    assert "rank 0 of 1" in output
    output = zl.ssh(*words, program="echo rank $RANK meets $MASTER_ADDR", hosts=["six1", "six2"])
    assert "rank 0 meets fd97:" in output


def test_an_address_of_ipv6_with_its_port_is_a_host_and_in_a_hostfile(zl: Zl, config: Path) -> None:
    names = [f"[{address(zl, host)}]:2222" for host in HOSTS]
    assert "met" in zl.ssh("--ssh-config", str(config), program="echo met", hosts=names)
    (zl.home / "hosts.txt").write_text("".join(f"{name} slots=1\n" for name in names))
    words = ("--ssh-config", str(config), "--hostfile", str(zl.home / "hosts.txt"))
    assert "met" in zl.ssh(*words, program="echo met", hosts=[])


def test_a_jump_host_may_have_ipv6_only(zl: Zl, config: Path) -> None:
    jump = f"Host node3\n  ProxyJump [{address(zl, 'node1')}]:2222\n"
    zl.lab.run("node3", ["ip", "addr", "add", f"{address(zl, 'node3')}/64", "dev", "eth0", "nodad"])
    sshd = (zl.lab.root / "ssh/sshd3.conf").read_text().replace("Port 22\n", "Port 2222\n")
    (zl.lab.shared / "six-3.conf").write_text(
        sshd.replace(f"ListenAddress {zl.lab.address('node3')}", "ListenAddress ::").replace(
            "PidFile none", "PidFile /run/six.pid"
        )
    )
    zl.lab.run("node3", ["/usr/sbin/sshd", "-f", str(zl.lab.shared / "six-3.conf")])
    try:
        config.write_text(f"{jump}  HostName {address(zl, 'node3')}\n  Port 2222\n{config.read_text()}")
        assert "behind" in zl.ssh("--ssh-config", str(config), program="echo behind", hosts=["node3"])
    finally:
        zl.lab.run("node3", ["sh", "-c", "kill $(cat /run/six.pid)"])
        zl.lab.run("node3", ["ip", "addr", "del", f"{address(zl, 'node3')}/64", "dev", "eth0"])


def test_the_doctor_finds_hosts_without_ipv4_well(zl: Zl, config: Path) -> None:
    words = ["doctor", "ssh", "--hosts", "six1,six2", "--ssh-config", str(config), "--python", zl.lab.python]
    lines = zl(*words, "--device", "cpu", "--json", code=None).splitlines()
    rows = {row["host"]: row for row in map(json.loads, [line for line in lines if line.startswith("{")])}
    assert {name: row["network"]["text"] for name, row in rows.items()} == {"six1": "ok", "six2": "ok"}

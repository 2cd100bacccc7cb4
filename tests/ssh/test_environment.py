"""What reaches the ranks on other hosts: variables about the network, and the interface that the hosts met on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ssh.conftest import Zl

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(180)]

GLOO = """
import datetime, os, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
dist.barrier()
print("met on", os.environ["GLOO_SOCKET_IFNAME"], flush=True)
"""


def logs(zl: Zl) -> list[str]:
    return [log.read_text().strip() for log in sorted((zl.runs / zl.run_id / "logs").glob("node-*/rank-*.log"))]


def test_variables_about_the_network_travel_and_the_plan_lists_them(zl: Zl) -> None:
    zl.environ |= {"NCCL_SOCKET_IFNAME": "eth0", "UCX_TLS": "tcp", "HOME": str(zl.home), "NOT_THIS": "1"}
    (zl.home / ".deepspeed_env").write_text("NCCL_IB_DISABLE=1\nNCCL_DEBUG=INFO\n")
    show = 'echo "$NCCL_SOCKET_IFNAME $UCX_TLS $NCCL_IB_DISABLE $NCCL_DEBUG [$NOT_THIS] $GLOO_SOCKET_IFNAME"'
    zl.ssh("--set", "env.NCCL_DEBUG=WARN", program=show, hosts=["node1", "node2"])
    assert logs(zl) == ["eth0 tcp 1 WARN [] eth0"] * 2
    output = zl.ssh("--dry-run", "--check", program=show, hosts=["node1", "node2"])
    assert "env.NCCL_SOCKET_IFNAME = eth0: from this shell" in output
    assert f"env.NCCL_IB_DISABLE = 1: from {zl.home}/.deepspeed_env" in output


@pytest.fixture
def own_name_is_loopback(zl: Zl) -> Iterator[None]:
    """Debian's usual /etc/hosts: the host's own name is 127.0.1.1."""
    hosts = ["node1", "node2"]
    for host in hosts:
        zl.lab.run(host, ["sh", "-c", f"cp /etc/hosts /root/hosts && sed -i '1i 127.0.1.1 {host}' /etc/hosts"])
    yield
    for host in hosts:
        zl.lab.run(host, ["sh", "-c", "cat /root/hosts > /etc/hosts"])


def test_ranks_meet_although_each_hosts_name_is_a_loopback_address(zl: Zl, own_name_is_loopback: None) -> None:
    pytest.importorskip("torch")
    (zl.home / "meet.py").write_text(GLOO)
    words = ["ssh", *zl.target(["node1", "node2"]), "--device", "cpu", "--", "meet.py"]
    zl(*words)
    assert [text.splitlines()[-1] for text in logs(zl)] == ["met on eth0"] * 2

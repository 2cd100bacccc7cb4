"""Which GPUs a run on real hosts gets: nvidia-smi is a script that answers as the real one, all else is real."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.ssh.conftest import Zl

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(180)]

SHOW = 'echo "rank $RANK of $WORLD_SIZE on $(hostname): $CUDA_VISIBLE_DEVICES, $CUDA_DEVICE_ORDER"'
FOUR = 'for i in 0 1 2 3; do echo "$i, GPU-aaaa$i, NVIDIA A100-SXM4-80GB, 81920, 8.0, 580.1"; done'
BROKEN = 'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18'
Install = Callable[..., None]


@pytest.fixture
def install(zl: Zl) -> Iterator[Install]:
    """Give a host an nvidia-smi, and lines of ~/.bashrc."""
    files = set()

    def install(host: str, script: str, bashrc: str = "", folder: str = "/usr/bin") -> None:
        put = 'mkdir -p "$1" && printf "#!/bin/sh\\n%s\\n" "$2" > "$1/nvidia-smi" && chmod +x "$1/nvidia-smi" && '
        zl.lab.run(host, ["sh", "-c", put + 'printf "%s\\n" "$3" > /root/.bashrc', "-", folder, script, bashrc])
        files.add((host, f"{folder}/nvidia-smi"))

    yield install
    for host, file in files:
        zl.lab.run(host, ["rm", "-f", file, "/root/.bashrc"])


def run(zl: Zl, *words: str, hosts: list[str], code: int = 0) -> str:
    return zl("ssh", *zl.target(hosts), *words, "--", "bash", "-c", SHOW, code=code)


def ranks(zl: Zl) -> list[str]:
    logs = (zl.runs / zl.run_id / "logs").glob("node-*/rank-*.log")
    return sorted(line for log in logs for line in log.read_text().splitlines() if line.startswith("rank"))


def test_slots_count_within_the_hosts_own_list(zl: Zl, install: Install) -> None:
    install("node1", FOUR, "export CUDA_VISIBLE_DEVICES=2,3")
    install("node2", FOUR, "export CUDA_VISIBLE_DEVICES=GPU-aaaa1")
    run(zl, hosts=["node1", "node2"])
    assert ranks(zl) == [
        "rank 0 of 3 on node1: 2,3, PCI_BUS_ID", "rank 1 of 3 on node1: 2,3, PCI_BUS_ID",
        "rank 2 of 3 on node2: GPU-aaaa1, PCI_BUS_ID",
    ]  # fmt: skip
    run(zl, "--include", "node1:1", hosts=["node1", "node2"])
    assert ranks(zl) == ["rank 0 of 1 on node1: 3, PCI_BUS_ID"]
    output = run(zl, "--include", "node1:0,3", "--slots", "4", hosts=["node1"], code=1)
    assert "slot 3 requested, but the host has 2 GPUs (CUDA_VISIBLE_DEVICES=2,3 there)" in output
    run(zl, "--set", "env.CUDA_VISIBLE_DEVICES='0,3'", "--include", "node1:1", hosts=["node1"])
    assert ranks(zl) == ["rank 0 of 1 on node1: 3, PCI_BUS_ID"]  # the job's own list wins over the host's


def test_a_broken_driver_is_reported_in_its_own_words_and_never_means_the_cpu(zl: Zl, install: Install) -> None:
    install("node1", BROKEN)
    output = run(zl, hosts=["node1", "node2"], code=1)
    assert "node1: /usr/bin/nvidia-smi: Failed to initialize NVML: Driver/library version mismatch" in output
    assert "--device cpu" in output
    run(zl, "--device", "cpu", hosts=["node1", "node2"])
    assert len(ranks(zl)) == 2
    rows = zl("doctor", "ssh", *zl.target(["node1"]), "--smoke", "--json", code=1)
    cell = json.loads(rows.splitlines()[-1])["gpus"]
    assert (cell["level"], "version mismatch" in cell["advice"]) == ("bad", True)


def test_hosts_with_and_without_gpus_are_named(zl: Zl, install: Install) -> None:
    install("node2", FOUR, folder="/usr/local/nvidia/bin")  # not on the PATH of a login
    assert "no GPU on node1, but on node2" in run(zl, hosts=["node1", "node2"], code=2)
    install("node2", FOUR, "export CUDA_VISIBLE_DEVICES=-1", folder="/usr/local/nvidia/bin")
    run(zl, hosts=["node1", "node2"])
    assert [line.split(":")[0] for line in ranks(zl)] == ["rank 0 of 2 on node1", "rank 1 of 2 on node2"]
    install("node2", FOUR, "export CUDA_VISIBLE_DEVICES=7", folder="/usr/local/nvidia/bin")
    assert "CUDA_VISIBLE_DEVICES=7 leaves none of the 4 GPUs" in run(zl, hosts=["node1", "node2"], code=1)

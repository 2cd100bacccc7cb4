"""The hosts of the bench: simulated on this machine (tests/testbed), or real ones over SSH."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbed import slots
from tests.testbed.bed import Lab, Slurm

LOOK = """
import os, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        line, environ = open(f"/proc/{pid}/cmdline", "rb").read(), open(f"/proc/{pid}/environ", "rb").read()
    except OSError:
        continue
    if int(pid) != os.getpid() and line and sys.argv[1].encode() in line + b"\\0" + environ:
        print(pid, line.replace(b"\\0", b" ").decode(errors="replace"))
"""


@dataclass
class Hosts:
    names: list[str]
    per_host: int
    """Ranks of each host."""
    device: str
    shared: Path
    """A directory that this machine and all hosts see."""
    python: str = sys.executable
    ssh_config: Path | None = None
    lab: Lab | None = None
    slurm: Slurm | None = None

    @property
    def ranks(self) -> int:
        return len(self.names) * self.per_host

    def words(self, names: Sequence[str] | None = None, slots: int | None = None) -> list[str]:
        """`zlaunch ssh` on these hosts with so many ranks each."""
        config = ["--ssh-config", str(self.ssh_config)] if self.ssh_config else []
        where = ["--hosts", ",".join(names or self.names), "--slots", str(slots or self.per_host)]
        return ["ssh", *where, *config, "--python", self.python, "--device", self.device]

    def slurm_words(self) -> list[str]:
        count = "--gpus-per-node" if self.device == "cuda" else "--procs-per-node"
        words = ["slurm", "--nodes", str(len(self.names)), count, str(self.per_host), "--python", self.python]
        return [*words, "--time", "00:20:00", "--device", self.device]

    def run(self, host: str, argv: Sequence[str]) -> str:
        """Output of a command on a host."""
        if self.lab is not None:
            return self.lab.run(host, argv, check=False).stdout
        import shlex

        config = ["-F", str(self.ssh_config)] if self.ssh_config else []
        command = ["ssh", "-n", *config, host, shlex.join(argv)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout

    def processes(self, text: str, names: Sequence[str] | None = None) -> dict[str, list[str]]:
        """{host: lines `pid command`} of processes that have the text in their command line or environment."""
        look = [self.python, "-S", "-c", LOOK, text]
        found = {host: self.run(host, look).splitlines() for host in names or self.names}
        return {host: kept for host, lines in found.items() if (kept := [x for x in lines if "nsenter" not in x])}

    def on_gpus(self) -> list[str]:
        """Processes that hold a GPU of the hosts."""
        if self.device != "cuda":
            return []
        query = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
        if self.lab is not None:  # the driver of this machine sees the processes of all simulated hosts
            return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
        return [f"{host}: {pid}" for host in self.names for pid in self.run(host, query).split()]


def have_slurm() -> bool:
    return all(any(Path(d, tool).exists() for d in os.environ["PATH"].split(":")) for tool in ("sbatch", "slurmctld"))


@contextmanager
def simulated(count: int, per_host: int, device: str, models: Path | None, *, with_slurm: bool) -> Iterator[Hosts]:
    """Hosts on this machine; on CPUs `per_host` ranks share its cores. Slurm runs in them where it is installed."""
    with_slurm = with_slurm and have_slurm()
    slot = slots.acquire()
    gpus = per_host if device == "cuda" else 0
    lab = Lab(slot.root / "lab", slot.tag, slot.lab_network, count, gpus=gpus, mtu=9000, disk="16g" if gpus else "2g")
    slurm = Slurm(lab.shared / "slurm", slot.ports(0), size=count, lab=lab)
    try:
        lab.start([models] if models else [])
        hosts = Hosts(lab.hosts, per_host, device, lab.shared, lab.python, lab.ssh_config, lab)
        if with_slurm:
            slurm.start()
            hosts.slurm = slurm
        yield hosts
    finally:
        if with_slurm:
            slurm.stop()
        lab.stop()
        slot.release()

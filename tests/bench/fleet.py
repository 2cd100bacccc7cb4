"""Many hosts: a run on N simulated hosts is started, watched and cancelled on one machine; what it takes and leaves.

    python -m tests.bench.fleet [--hosts 256] [--seconds 20]

The hosts are real sshd on loopback addresses, so far ends, agents, wardens and ranks share the processors with the
launcher. The program imitates the training program's files without torch (tests/torture/imitation.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launcher.node import processes
from tests.beds.places import ROOT
from tests.testbed import slots
from tests.testbed.bed import Farm

PROGRAM = ROOT / "tests" / "torture" / "imitation.py"
PORT = 2222


@dataclass
class Figures:
    """What one run took; `cpu` and `rss_mib` are of zlaunch's own process."""

    hosts: int
    start_seconds: float = 0.0
    """From the command to a running agent and rank on every host, with metrics of rank 0."""
    start_cpu: float = 0.0
    watch_cpu_share: float = 0.0
    """Processor seconds per second of watching."""
    rss_mib: int = 0
    most_connections: int = 0
    status_seconds: float = 0.0
    status_cpu: float = 0.0
    cancel_seconds: float = 0.0
    """Until the command and the one that watched have both ended."""
    cancel_cpu: float = 0.0
    state: str = ""
    left: list[str] = field(default_factory=list)
    """Processes of the run and connections that are still there afterwards."""
    output: str = ""


def measure(farm: Farm, root: Path, seconds: float = 20.0, patience: float = 600.0) -> Figures:
    """Start, watch and cancel one run on all hosts of a farm."""
    figures, command = Figures(farm.size), _Commands(farm, root)
    begin = time.monotonic()
    words = ["--device", "cpu", "--set", "ssh.connect_timeout=60", "--", sys.executable, str(PROGRAM), "100000", "2"]
    watching = command.start("ssh", "--ssh-config", str(farm.ssh_config), "--hosts", ",".join(farm.hosts),
                             "--python", sys.executable, *words)  # fmt: skip
    try:

        def running() -> bool:
            if watching.poll() is not None:
                raise RuntimeError(f"the run has ended: {command.output.read_text()[-2000:]}")
            figures.most_connections = max(figures.most_connections, connections(farm))
            runs = [*(root / "runs").glob("*-*-*-*")]
            return bool(runs) and _has_started(farm, runs[0].name)

        _wait(running, patience)
        figures.start_seconds, figures.start_cpu = time.monotonic() - begin, _cpu(watching.pid)
        run = next((root / "runs").glob("*-*-*-*")).name
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            figures.most_connections = max(figures.most_connections, connections(farm))
            time.sleep(0.2)
        figures.watch_cpu_share = (_cpu(watching.pid) - figures.start_cpu) / (time.monotonic() - begin)
        figures.rss_mib = _peak(watching.pid)
        figures.status_seconds, figures.status_cpu, text = command.run("status", run, "--json")
        begin = time.monotonic()
        _, figures.cancel_cpu, _ = command.run("cancel", run)
        watching.wait(patience)
        figures.cancel_seconds = time.monotonic() - begin
        _, _, text = command.run("status", run, "--json")
        figures.state = json.loads(text.splitlines()[-1])["state"]
        _wait(lambda: not _left(farm, run), 30, fails=False)
        figures.left = _left(farm, run)
    finally:
        if watching.poll() is None:
            os.killpg(watching.pid, signal.SIGKILL)
            watching.wait()
    figures.output = command.output.read_text(errors="replace")
    return figures


class _Commands:
    """zlaunch as a user runs it, in processes of its own."""

    def __init__(self, farm: Farm, root: Path) -> None:
        self.output = root / "output"
        home = root / "home"
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.environ = {**os.environ, "HOME": str(home), "ZLAUNCH_RUNS": str(root / "runs"), "PYTHONPATH": str(ROOT)}
        self.environ |= {"USER": "root"}  # paramiko asks for it per line of configuration; unset, that is slow

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with self.output.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "launcher", *words], cwd=self.home, env=self.environ,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def run(self, *words: str) -> tuple[float, float, str]:
        """(wall seconds, processor seconds, output) of a command that must succeed."""
        begin = time.monotonic()
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher", *words], cwd=self.home, env=self.environ,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            text = output.read().decode(errors="replace")
        if process.returncode:
            raise RuntimeError(f"{words}: exit {process.returncode}: {text[-2000:]}")
        return time.monotonic() - begin, usage.ru_utime + usage.ru_stime, text


def _has_started(farm: Farm, run: str) -> bool:
    """Whether a rank runs on every host, and rank 0 has written metrics."""
    for node, host in enumerate(farm.hosts):
        folder = farm.home(host) / "zlaunch" / "runs" / run
        try:
            record = json.loads((folder / f"nodes/node-{node}.json").read_text())
        except (OSError, ValueError):
            return False
        if record["state"] != "RUNNING" or not record["ranks"] or not (node or (folder / "metrics.jsonl").exists()):
            return False
    return True


def _left(farm: Farm, run: str) -> list[str]:
    found = [f"process {pid}" for pid, _ in processes.find_run_processes(run)]
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if run.encode() in line:
            found.append(f"process {entry.name} {line[:200]!r}")
    count = connections(farm)
    return [*found, f"{count} connections"] if count else found


def connections(farm: Farm) -> int:
    """Established connections to the sshd of a farm, which are told from others by their network."""
    one, two, three = (int(part) for part in farm.network.split("."))
    ends = [f"{three:02X}{two + more:02X}{one:02X}:{PORT:04X}" for more in (0, 1)]  # little-endian, without the host
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(1 for row in rows if row[3] == "01" and row[2][2:] in ends)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def _wait(ask: Callable[[], bool], seconds: float, *, fails: bool = True) -> None:
    end = time.monotonic() + seconds
    while not ask():
        if time.monotonic() > end:
            if fails:
                raise RuntimeError(f"not within {seconds:g} s")
            return
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hosts", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the run is watched")
    chosen, _ = parser.parse_known_args()
    slot = slots.acquire()
    memory = Path("/dev/shm")  # hosts have a disk each; on one they would wait for each other
    root = Path(tempfile.mkdtemp(prefix="zlaunch-fleet-", dir=memory if os.access(memory, os.W_OK) else None))
    farm = Farm(root / "farm", slot.farm_network, chosen.hosts)
    try:
        farm.start()
        for name, value in asdict(measure(farm, root, chosen.seconds)).items():
            if name != "output":
                print(f"{name:<18} {value:.2f}" if isinstance(value, float) else f"{name:<18} {value}", flush=True)
    finally:
        farm.stop()
        shutil.rmtree(root, ignore_errors=True)
        slot.release()


if __name__ == "__main__":
    main()

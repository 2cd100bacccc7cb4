"""Agents of many nodes on one machine, without training: what the first node's agent pays, and how long decisions take.

    python -m tests.bench.agents [--nodes 64] [--seconds 20]

The agents are real, meet over loopback and share the processors, so times of all of them together (start, failure,
cancel) are mostly this machine's. The processor time, memory and sockets of the first agent are its own on any machine.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.beds.agent_bed import Run, bed

WAVE = 32
"""Agents that start at a time."""


@dataclass
class Figures:
    """Of one run on `nodes` nodes. Milliseconds of processor time are those of the first node's agent."""

    nodes: int
    start_seconds: float = 0.0
    """From the first process until every node has started its rank."""
    start_ms_per_node: float = 0.0
    beat_ms_per_node_and_minute: float = 0.0
    """While nothing happens but heartbeats."""
    member_ms_per_minute: float = 0.0
    """The same of one of the other agents."""
    rss_mib: float = 0.0
    sockets: int = 0
    member_mib: float = 0.0
    """Private memory of another agent and its warden."""
    failure_seconds: float = 0.0
    """From a rank's end until the first node's own rank is gone: the failure came in, and the decision went out."""
    failure_ms_per_node: float = 0.0
    failure_all_seconds: float = 0.0
    """Until the last agent has ended."""
    cancel_seconds: float = 0.0
    """From Ctrl-C until the last agent has ended."""
    cancel_ms_per_node: float = 0.0


def cpu(pid: int) -> float:
    """Processor milliseconds of a process with one thread so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def cpu_until_the_end(run: Run, first: int, before: float) -> float:
    """The last `cpu` of the first agent that can be read, at least `before`."""
    spent = before
    while run.agents[0].poll() is None:
        try:
            spent = max(spent, cpu(first))
        except OSError:
            break
        time.sleep(0.05)
    return spent


def memory(pid: int, key: str) -> float:
    """MiB of a line of smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def sockets(pid: int) -> int:
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += str(entry.readlink()).startswith("socket:")
        except OSError:
            continue
    return found


def begin(run: Run) -> tuple[float, int]:
    """Start all agents; (seconds until every rank runs, pid of the first agent)."""
    begun = time.monotonic()
    nodes, events = len(run.dirs), run.path / "events.jsonl"
    for place in range(0, nodes, WAVE):  # on hosts of their own they would not wait for each other
        run.start(only=list(range(place, min(nodes, place + WAVE))))
        while not events.exists() or events.read_text().count('"agent_started"') < min(nodes, place + WAVE):
            time.sleep(0.1)
    while not events.exists() or events.read_text().count('"ranks_started"') < nodes:
        if time.monotonic() - begun > 900:
            raise RuntimeError(f"only {events.read_text().count('ranks_started')} of {nodes} nodes have started")
        time.sleep(0.2)
    return time.monotonic() - begun, int(run.record(0)["pid"])


def ended(run: Run, since: float) -> float:
    """Seconds until the last agent has ended."""
    for process in run.agents.values():
        process.wait(300)
    return time.monotonic() - since


def measure(root: Path, nodes: int, seconds: float) -> Figures:
    figures = Figures(nodes)
    limits = {"heartbeat_timeout": 60.0, "start_timeout": 900.0, "stop_deadline": 10.0, "kill_after": 5.0}
    with bed(root / "failure") as make:
        run = make("exec sleep 3600", nodes=[1] * nodes, **limits)
        figures.start_seconds, first = begin(run)
        figures.start_ms_per_node = cpu(first) / nodes
        member = int(run.record(nodes // 2)["pid"])
        before, member_before, since = cpu(first), cpu(member), time.monotonic()
        time.sleep(seconds)
        minutes = (time.monotonic() - since) / 60
        figures.beat_ms_per_node_and_minute = (cpu(first) - before) / nodes / minutes
        figures.member_ms_per_minute = (cpu(member) - member_before) / minutes
        figures.rss_mib, figures.sockets = memory(first, "Rss:"), sockets(first)
        warden = run.record(nodes // 2)["warden"]["pid"]
        figures.member_mib = sum(memory(pid, "Private_") for pid in (member, warden))
        own, before, since = run.rank_pid(0, 0), cpu(first), time.monotonic()
        os.kill(run.rank_pid(nodes // 2, nodes // 2), signal.SIGKILL)
        while Path(f"/proc/{own}").exists():
            time.sleep(0.005)
        figures.failure_seconds = time.monotonic() - since
        spent = cpu_until_the_end(run, first, before)
        figures.failure_ms_per_node = (spent - before) / nodes
        figures.failure_all_seconds = ended(run, since)
        states = {run.record(node)["state"] for node in range(nodes)}
        assert states == {"FAILED"}, states
        assert run.left() == []
    with bed(root / "cancel") as make:
        run = make("exec sleep 3600", nodes=[1] * nodes, cooperative=False, **limits)
        _, first = begin(run)
        before, since = cpu(first), time.monotonic()
        run.signal(0, signal.SIGINT)
        spent = cpu_until_the_end(run, first, before)
        figures.cancel_ms_per_node = (spent - before) / nodes
        figures.cancel_seconds = ended(run, since)
        states = {run.record(node)["state"] for node in range(nodes)}
        assert states == {"CANCELLED"}, states
        assert run.left() == []
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", default="64")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long nothing happens but heartbeats")
    chosen, _ = parser.parse_known_args()
    for nodes in map(int, chosen.nodes.split(",")):
        with tempfile.TemporaryDirectory(prefix="zlaunch-agents-") as root:
            for name, value in asdict(measure(Path(root), nodes, chosen.seconds)).items():
                print(f"{name:<28} {value:.2f}" if isinstance(value, float) else f"{name:<28} {value}", flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()

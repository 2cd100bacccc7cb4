"""Measure the network between hosts by a short run of its own, as a training there would use it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.backends import backend_of, target_of
from launcher.backends.checklist import Cell, Row
from launcher.backends.own_allocation import hostnames
from launcher.errors import TargetError, UsageError, ZlaunchError
from launcher.job.spec import Job
from launcher.lifecycle import removal, submit
from launcher.lifecycle.attach import follow
from launcher.machine import installation, process
from launcher.plan.agent_plan import SOCKETS
from launcher.plan.between_hosts import rate_text
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState

MARK = "ZLAUNCH_NET "
SLOW = 0.7
"""Share of the median rate of the hosts below which a host is named."""


@dataclass(frozen=True)
class Measured:
    """What the ranks measured; see train/netcheck.py."""

    hosts: tuple[str, ...]
    found: dict[str, Any]

    @property
    def rate(self) -> float:
        """Bytes per second of the largest all-reduce."""
        return float(max(self.found["all_reduce"].items(), key=lambda item: int(item[0]))[1])

    def rate_of(self, host: int) -> float | None:
        """The median of the rates of a host's pairs, the slower way of each; None: nothing was measured in pairs."""
        ways: dict[tuple[int, int], float] = {}
        for sender, receiver, rate in self.found["pairs"]:
            pair = (min(sender, receiver), max(sender, receiver))
            ways[pair] = min(rate, ways.get(pair, rate))
        own = [rate for pair, rate in ways.items() if host in pair]
        return statistics.median(own) if own else None


def program_text() -> str:
    return (installation.train_package() / "netcheck.py").read_text(encoding="utf-8")


def measure_hosts(job: Job) -> Measured:
    """Between the hosts of a job, over SSH. Raises TargetError and UsageError."""
    target = target_of("ssh", job.spec)
    if len(target.hosts) < 2:
        raise UsageError("a network needs two hosts", hint="--hosts a,b", code="ZL-HOST-01")
    env = {**job.spec.env, "ZLAUNCH_NET_DEVICE": target.device}
    values = {"name": "doctor-net", "program": (target.python, "-u", "-c", program_text()), "env": env}
    spec = job.spec.with_values({**values, "notify.url": None, "notify.command": None, "max_restarts": 0})
    run, plan = submit.prepare(Job(spec, {**job.tree, **values}, job.origin, job.held), target)
    submit.submit(run, plan, backend_of("ssh"), {})
    with Path(os.devnull).open("w") as nothing:
        state = follow(run, backend_of("ssh"), output=nothing)
    measured = Measured(tuple(name for name, _ in target.hosts), _read(run, state))
    with contextlib.suppress(ZlaunchError), contextlib.ExitStack() as stack:  # a host that is gone by now: `zlaunch rm`
        removal.remove(removal.run_removal(run, stack, local=False))
    return measured


def _read(run: RunDir, state: RunState) -> dict[str, Any]:
    log = run.path / "logs/node-0/rank-0.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    line = next((line for line in text.splitlines() if line.startswith(MARK)), None)
    if line is None:
        raise TargetError(
            f"the hosts could not measure their network: {run.run_id} ended as {state.value}",
            hint=f"zlaunch logs {run.run_id}; the ranks need torch (--python)",
            code="ZL-SSH-08",
        )
    found: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return found


def measure_allocation(python: str, device: str) -> Measured:
    """Between the nodes of the Slurm allocation that this process is in, by a step with one task per node.

    Raises TargetError and UsageError.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise UsageError(
            "no hosts are named, and this is no Slurm allocation",
            hint="--hosts a,b, or run it in salloc",
            code="ZL-HOST-01",
        )
    hosts = tuple(hostnames(os.environ.get("SLURM_JOB_NODELIST", "")))
    if len(hosts) < 2:
        raise UsageError(
            "a network needs two nodes, and this allocation has one", hint="salloc -N 2", code="ZL-SLURM-06"
        )
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 10000
    environ = {**os.environ, "MASTER_ADDR": _address_of(hosts[0]), "MASTER_PORT": str(port)}
    environ |= {name: environ.get(name, value) for name, value in SOCKETS.items()}
    environ["ZLAUNCH_NET_DEVICE"] = device
    count = len(hosts)
    step = ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--overlap", "--export=ALL"]
    gpus = ["--gpus-per-task=1"] if device == "cuda" else []
    done = subprocess.run(
        [*step, *gpus, python, "-u", "-c", program_text()], env=environ, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=900, check=False,
    )  # fmt: skip
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if line is None:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise TargetError(
            f"the nodes could not measure their network: {last}",
            hint="the tasks need torch (--python)",
            code="ZL-SSH-08",
        )
    return Measured(hosts, json.loads(line.removeprefix(MARK)))


def _address_of(node: str) -> str:
    """The name of a node, or the address that Slurm has for a name that does not resolve (slurm/train.sbatch.j2)."""
    with contextlib.suppress(OSError):
        socket.getaddrinfo(node, None)
        return node
    told = process.run(["scontrol", "show", "node", "--oneliner", node], timeout=20).stdout
    found = re.search(r" NodeAddr=(\S+)", told)
    return found[1] if found else node


def rows_of(measured: Measured) -> list[Row]:
    """A row for the network, and one for each host."""
    found = measured.found
    sizes = ", ".join(
        f"{int(size) >> 20} MiB {rate / 2**30:.2f} GiB/s"
        for size, rate in sorted(found["all_reduce"].items(), key=lambda item: int(item[0]))
    )
    latency = found["latency_seconds"]
    rows = [
        Row(
            f"{len(measured.hosts)} hosts",
            {
                "backend": Cell(found["backend"]),
                "latency": Cell(f"{latency * 1000:.2f} ms"),
                "all-reduce": Cell(sizes),
                "for plans": Cell(rate_text(measured.rate)),
            },
        )
    ]
    rates = [measured.rate_of(number) for number in range(len(measured.hosts))]
    known = [rate for rate in rates if rate is not None]
    usual = statistics.median(known) if known else None
    for number, (host, row) in enumerate(zip(measured.hosts, found["hosts"], strict=True)):
        rows.append(Row(host, _cells(row, rates[number], usual)))
    return rows


def _cells(row: dict[str, Any], rate: float | None, usual: float | None) -> dict[str, Cell]:
    chosen, moved = row["interface"] or "not known", row["moved"]
    used = max(moved, key=lambda name: moved[name]) if moved and max(moved.values()) > 2**20 else ""
    cells = {"interface": Cell(used or chosen)}
    if used and row["interface"] and used not in row["interface"]:
        cells["interface"] = Cell(
            f"{chosen}, but {used} moved the bytes",
            "warn",
            f"set env.NCCL_SOCKET_IFNAME or the route: {chosen} was meant",
        )
    if row["transport"]:
        cells["transport"] = Cell(row["transport"])
    details = [f"MTU {row['mtu']}"] if row.get("mtu") else []
    if row.get("line_bits_per_second"):
        details.append(f"{row['line_bits_per_second'] / 1e9:g} Gb/s by its driver")
    cells["line"] = Cell(", ".join(details) or "not known")
    if rate is not None and usual:
        slow = rate < SLOW * usual
        advice = f"{usual / rate:.1f} times slower than the others: look at its cable, port, driver and other traffic"
        cells["with others"] = Cell(f"{rate / 2**30:.2f} GiB/s", "warn" if slow else "ok", advice if slow else "")
    return cells

"""A slot is the right to use one set of names, networks and ports of this machine; two test runs never share one.

Slot k means: directory `<base>/<k>`, lab network 10.97.<k>.0/24, bridge `zl<k>br`, farm network 127.97.<k>.0/24, Slurm
ports from 20000 + 300 k. A process holds its slot with an flock until it ends. The next holder first stops what a
killed run left there.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

BASE = Path(os.environ.get("ZLAUNCH_TESTBED", "/var/tmp/zlaunch-testbed"))
SLOTS = 40


@dataclass(frozen=True)
class Slot:
    number: int
    root: Path
    lock: int
    """File descriptor that holds the flock."""

    @property
    def tag(self) -> str:
        return f"zl{self.number}"

    @property
    def lab_network(self) -> str:
        return f"10.97.{self.number}"

    @property
    def farm_network(self) -> str:
        return f"127.97.{self.number}"

    def ports(self, part: int) -> int:
        """First of 150 ports of the part-th cluster (0 or 1) of this slot; all lie below Linux's ephemeral range."""
        return 20000 + 300 * self.number + 150 * part

    def release(self) -> None:
        os.close(self.lock)


def acquire() -> Slot:
    """The first free slot. Raises RuntimeError when all are taken."""
    BASE.mkdir(parents=True, exist_ok=True)
    for number in range(SLOTS):
        lock = os.open(BASE / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        slot = Slot(number, BASE / str(number), lock)
        if _network_is_ours_or_free(slot):
            return slot
        slot.release()
    raise RuntimeError(f"all {SLOTS} test bed slots under {BASE} are taken")


def _network_is_ours_or_free(slot: Slot) -> bool:
    """Whether this machine uses the slot's network for nothing but a lab of this slot."""
    routes = subprocess.run(
        ["ip", "-4", "route", "show", "root", f"{slot.lab_network}.0/24"], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return all(line.startswith("blackhole") or f"dev {slot.tag}br" in line for line in routes)

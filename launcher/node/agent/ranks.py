"""Start, watch and end the ranks of one node."""

from __future__ import annotations

import os
import re
import signal
import time

from ..addresses import interface_of
from ..files import last_lines, read_json, remove, tail
from ..hangs import WATCH_FD, Pulse, Pulses
from ..memory_kills import MemoryKills
from ..processes import (
    descendants,
    die_with_parent,
    kill_quietly,
    left_below,
    process_table,
    spawn,
    split_status,
    start_time_of,
)
from ..write_errors import free_on, is_full, mount_of
from .causes import cause_of_exit, ended_politely, failure_of
from .launch import EXIT_STOPPED, base_environment, rank_environment

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Tuple

    from ..files import Json
    from .launch import Names


MOST_CHARS = 1000
"""Of the line that a rank printed last."""


class GpuError(Exception):
    """The node lacks GPUs for its ranks; the text says why."""


class Ranks:
    """The processes of one attempt on this node, and how they end: asked, terminated, killed, proved gone."""

    def __init__(self, launch: Json, names: Names, node_rank: int, secrets: Dict[str, str], emit: Callable[..., None]):
        self.launch, self.names, self.node_rank, self.secrets, self.emit = launch, names, node_rank, secrets, emit
        self.attempt = -1
        self.rows: List[Json] = []
        self.failures: List[Json] = []
        self.offsets: Dict[int, int] = {}
        self.kills: Optional[MemoryKills] = None
        """The kernel's count of processes that it ended for memory, before the ranks started."""
        self.pulses = Pulses()
        """Signs of progress of the ranks; none for a program of the user's."""
        self.stop_asked = False
        self.terminated = False
        self.cut_short = False
        """Whether ranks still ran when they were terminated: an exit code of 0 is then no success."""
        self.deadline: Optional[float] = None
        """When the next harder step is due: SIGTERM, then SIGKILL again and again."""

    @property
    def shielded(self) -> Tuple[signal.Signals, ...]:
        """Signals that the ranks ignore: Slurm sends them to every process, and a rank that watches control/ would die
        of one that asks the agent for a checkpoint. Such ranks end by themselves or by SIGKILL."""
        cooperative_on_slurm = self.launch["backend"] == "slurm" and self.launch["cooperative"]
        return (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2) if cooperative_on_slurm else ()

    def begin(self, attempt: int) -> None:
        """Reset for an attempt. Reports are about this attempt from here on, even if none of its ranks starts."""
        self.attempt, self.rows, self.failures, self.offsets = attempt, [], [], {}
        self.kills = MemoryKills()
        self.pulses.clear()
        self.stop_asked = self.terminated = self.cut_short = False
        self.deadline = None

    def start(self, table: List[Json], address: str = "") -> None:
        """Start every rank of this node. Raises OSError if one cannot be started; the ranks before it run.

        `address`: this node's own address on the control channel; empty: unknown. Raises GpuError on a node that Slurm
        chose, where nobody has counted the GPUs before.
        """
        node = next(node for node in table if node["node_rank"] == self.node_rank)
        base = base_environment(self.launch, self.names, int(node["procs"]), self.secrets)
        interface = interface_of(address)
        if interface:
            # Gloo would take the address that the host's name has, which is often 127.0.1.1.
            base.setdefault("GLOO_SOCKET_IFNAME", interface)
        if self.launch["backend"] == "slurm" and self.launch["device"] == "cuda":
            from ..census import shortage

            if missing := shortage(base, int(node["procs"])):
                raise GpuError(missing)
        for local_rank in range(int(node["procs"])):
            environ = {**base, **rank_environment(self.launch, table, self.node_rank, local_rank, self.attempt)}
            self.rows.append(self._spawn(int(environ["RANK"]), local_rank, environ))
        self.emit("ranks_started", ranks=[row["rank"] for row in self.rows], attempt=self.attempt)

    def _spawn(self, rank: int, local_rank: int, environ: Dict[str, str]) -> Json:
        log = self.names.rank_log(rank)
        remove(self.names.rank_error(rank))
        parent = os.getpid()

        def in_child() -> None:
            die_with_parent(signal.SIGKILL, parent)
            for number in self.shielded:
                signal.signal(number, signal.SIG_IGN)

        cwd = self.launch["cwd"] or self.names.root
        watch = os.memfd_create("zlaunch-signs") if self.launch["cooperative"] else None
        if watch is not None:
            environ[WATCH_FD] = str(watch)
        with open(os.devnull, "rb") as nothing, open(log, "ab") as output:
            self.offsets[rank] = output.tell()
            pid = spawn(self.launch["argv"], cwd, environ, nothing.fileno(), output.fileno(), in_child, watch)
        if watch is not None:
            self.pulses.of_rank[rank] = Pulse(pid, watch, time.monotonic())
        row = {"rank": rank, "local_rank": local_rank, "pid": pid, "start_time": start_time_of(pid)}
        return {**row, "exit_code": None, "signal": None}

    @property
    def living(self) -> List[Json]:
        return [row for row in self.rows if row["exit_code"] is None and row["signal"] is None]

    def ended(self, pid: int, status: int) -> None:
        """Note that a child ended. Record the cause if a rank failed without a request."""
        row = next((row for row in self.living if row["pid"] == pid), None)
        if row is None:
            return
        row["exit_code"], row["signal"] = split_status(status)
        self.emit("rank_exit", rank=row["rank"], code=row["exit_code"], signal=row["signal"])
        if row["exit_code"] not in (0, EXIT_STOPPED) and not self.terminated and not self._was_asked(row):
            self.failures.append(self._failure(row))

    def _was_asked(self, row: Json) -> bool:
        """A scheduler signals ranks and agent alike: a rank that dies of the signal has not failed."""
        return self.stop_asked and ended_politely(row["exit_code"], row["signal"])

    def _failure(self, row: Json) -> Json:
        rank, text = row["rank"], tail(self.names.rank_log(row["rank"]), self.offsets[row["rank"]])
        own = read_json(self.names.rank_error(rank)) or {}
        cause = str(own.get("cause") or cause_of_exit(row["exit_code"], row["signal"], text))
        full = cause in ("bug", "disk_full") and is_full(self.names.root)
        cause = "disk_full" if full else cause
        how = "was ended by signal %s" % row["signal"] if row["signal"] else "exited with code %s" % row["exit_code"]
        killed = victims_of(row, text) if cause in ("killed", "bug") else None
        if killed is not None and self.kills is not None:
            for_memory, said = self.kills.verdict(killed)
            cause = "out_of_host_memory" if for_memory else cause
            how += ": " + said
        lines = last_lines(text)
        detail = own.get("message") or (lines[-1].strip() if lines and not row["signal"] else "")
        return failure_of(
            cause,
            "rank %d on %s %s" % (rank, os.uname().nodename, how)
            + (": %s" % detail[:MOST_CHARS] if detail else "")
            + (" (%s)" % free_on(mount_of(self.names.root)) if full else ""),
            rank=rank,
            node_rank=self.node_rank,
            exit_code=row["exit_code"],
            signum=row["signal"],
            advice=own.get("advice"),
            log_tail=lines,
        )

    def ask_to_stop(self) -> None:
        """Ask the ranks to end. The control file exists already; signals follow after the deadline."""
        if not self.stop_asked:
            self.stop_asked = True
            if self.launch["cooperative"]:
                due = time.monotonic() + self.launch["stop_deadline"]
                self.deadline = due if self.deadline is None else min(due, self.deadline)
            else:
                self.terminate()

    def terminate(self) -> None:
        """Send SIGTERM now, and SIGKILL after `kill_after`."""
        if not self.terminated:
            self._signal_groups(signal.SIGTERM)
            self.terminated, self.cut_short = True, bool(self.living)
            self.deadline = time.monotonic() + self.launch["kill_after"]

    def _signal_groups(self, signum: int) -> None:
        sessions = {row["pid"] for row in self.rows}
        table = process_table()
        for pid in descendants(os.getpid(), table):
            if signum == signal.SIGKILL or table[pid].session in sessions or not self.living:
                kill_quietly(pid, signum)

    def tick(self, now: float) -> None:
        """Take the next harder step if it is due, also against leftover descendants of ended ranks."""
        if self.rows and not self.living and not self.terminated and left_below():
            self.terminate()
        if self.deadline is not None and now >= self.deadline:
            if not self.terminated:
                self.terminate()
            else:
                self._signal_groups(signal.SIGKILL)
                self.deadline = now + 0.2

    def is_quiet(self, now: float) -> bool:
        """Whether no rank that runs has given the sign of progress that it announced."""
        return (
            not self.stop_asked and not self.terminated and self.pulses.all_quiet([r["rank"] for r in self.living], now)
        )

    def gone(self) -> bool:
        """Whether every rank was collected and /proc shows no descendant."""
        return not self.living and not left_below()

    def outcome(self) -> str:
        """Return ok, stopped (a rank saved and ended on request), failed, or cancelled (the agent ended it)."""
        if self.failures:
            return "failed"
        codes = [row["exit_code"] for row in self.rows]
        if EXIT_STOPPED in codes:
            return "stopped"
        return "ok" if not self.cut_short and all(code == 0 for code in codes) else "cancelled"


def victims_of(row: Json, text: str) -> Optional[List[int]]:
    """Return the pids that a signal 9 ended: the rank itself, or a process that loaded data for it, which torch
    names in the log. Empty: a child whose end the rank handed on as code 137. None: no such signal is known of."""
    if row["signal"] == signal.SIGKILL:
        return [row["pid"]]
    loaders = re.findall(r"DataLoader worker \(pid\(?s?\)? (\d+)\) is killed by signal: Killed", text)
    if loaders or row["exit_code"] == 128 + signal.SIGKILL:
        return [int(pid) for pid in loaders]
    return None

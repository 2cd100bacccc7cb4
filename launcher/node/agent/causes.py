"""Causes of failures, found in the log's text or by how a process ended, each with advice."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Iterable, List, Optional

    from ..files import Json


class Cause:
    def __init__(self, name: str, pattern: str, advice: str, retryable: bool = True) -> None:
        self.name = name
        self.pattern = pattern
        """Regular expression for the end of the rank's log; empty: never found by text."""
        self.advice = advice
        self.retryable = retryable


CAUSES = (
    Cause(
        "out_of_memory",
        r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|can't allocate memory|Cannot allocate memory"
        r"|^MemoryError|std::bad_alloc",
        "lower train.micro_batch_size or data.max_length, or set train.gradient_checkpointing or model.quantization",
        retryable=False,
    ),
    Cause(
        "disk_full",
        r"No space left on device|Disk quota exceeded",
        "free space on the file system of the run directory (and in /dev/shm and the temporary directory)",
        retryable=False,
    ),
    Cause(
        "storage",
        r"Read-only file system|Stale file handle|Transport endpoint is not connected",
        "the file system named above cannot be used; check its mount on that host, then resume",
        retryable=False,
    ),
    Cause("vanished", "", "the directory was removed, or its disk is no longer mounted; start again", retryable=False),
    Cause(
        "port_taken",
        r"EADDRINUSE|Address already in use|address already in use",
        "another program holds the rendezvous port; start again (a new port is picked)",
    ),
    Cause(
        "bad_configuration",
        r"ModuleNotFoundError|unrecognized arguments|can't open file|ValidationError: ",
        "correct the job; the message above names the place",
        retryable=False,
    ),
    Cause(
        "engine",
        "",
        "the engine's words above say why; container.args adds an argument to its command line, and container.omit "
        "leaves one of zlaunch's out",
        retryable=False,
    ),
    Cause("data", "", "correct the records named above", retryable=False),
    Cause(
        "gpu",
        r"no CUDA-capable device|CUDA driver initialization failed|CUDA driver version is insufficient"
        r"|CUDA-capable device\(s\) is/are busy|invalid device ordinal|no kernel image is available"
        r"|Found no NVIDIA driver|NVIDIA driver on your system is too old|system not yet initialized|uncorrectable ECC",
        "`nvidia-smi` on that host and `zlaunch doctor` tell more; mend it, or leave the host out (--exclude)",
        retryable=False,
    ),
    Cause(
        "nccl",
        r"NCCL (?:error|WARN .*error)|nccl\w*Error|DistBackendError|Watchdog caught collective operation timeout"
        r"|gloo.*(?:Connection (?:closed|reset)|timed out|timeout)|Connection (?:closed|reset) by peer",
        "look at the other ranks first: a rank that died shows up as a broken connection on its peers; "
        "else set env.NCCL_DEBUG=INFO and check the network interfaces",
    ),
    Cause(
        "out_of_host_memory",
        "",
        "the job needs more of the host's memory than it may have: fewer ranks per host, no offload to the CPU, "
        "or ask for more (slurm.mem, the container's limit)",
    ),
    Cause(
        "killed",
        "",
        "another process sent a signal that nobody asked zlaunch for: a person, a scheduler's limit, systemd-oomd or "
        "earlyoom (journalctl has them); the message says what the kernel knows",
    ),
    Cause(
        "hang",
        "",
        "logs/node-*/stack-*.txt have the stacks of all threads; look at the rank that differs from the others. "
        "If its work only takes long, raise train.hang_timeout",
    ),
    Cause("lost_host", "", "check the host; with max_restarts and elastic: true the run continues without it"),
    Cause("bug", "", "the last lines of the rank's log show where it failed"),
)
CAUSE = {cause.name: cause for cause in CAUSES}
SECONDARY = {"lost_host": 1, "nccl": 2}
"""Causes that are often a consequence of another rank's failure: shown only if there is no other, in this order."""


def cause_of_text(text: str) -> str:
    """Return the first cause of the table whose pattern is in the log, else `bug`."""
    import re  # needed only after a failure

    for cause in CAUSES:
        if cause.pattern and re.search(cause.pattern, text, re.MULTILINE):
            return cause.name
    return "bug"


def cause_of_exit(code: Optional[int], signum: Optional[int], text: str) -> str:
    if signum == signal.SIGKILL:
        return "killed"
    if signum == signal.SIGBUS:
        return "disk_full"  # a shared-memory file could not grow: /dev/shm is full
    found = cause_of_text(text)
    if found == "bug" and signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return "killed"
    return "bad_configuration" if found == "bug" and code == 2 else found


def ended_politely(code: Optional[int], signum: Optional[int]) -> bool:
    """Whether a request ended the process: SIGTERM, SIGINT, or a shell's exit code for them."""
    polite = (signal.SIGTERM, signal.SIGINT)
    return signum in polite or code in [128 + number for number in polite]


def first_cause(failures: Iterable[Json]) -> Optional[Json]:
    """Return the failure to show: the earliest one that is not a consequence of another."""
    return min(failures, key=lambda failure: SECONDARY.get(failure["cause"], 0), default=None)


def failure_of(
    cause: str,
    message: str,
    *,
    rank: Optional[int] = None,
    node_rank: Optional[int] = None,
    exit_code: Optional[int] = None,
    signum: Optional[int] = None,
    advice: Optional[List[str]] = None,
    log_tail: Optional[List[str]] = None,
    host: Optional[str] = None,
) -> Json:
    return {
        "rank": rank,
        "node_rank": node_rank,
        "host": host or os.uname().nodename,
        "exit_code": exit_code,
        "signal": signum,
        "cause": cause,
        "message": message,
        "advice": advice or [CAUSE.get(cause, CAUSE["bug"]).advice],
        "log_tail": log_tail or [],
    }

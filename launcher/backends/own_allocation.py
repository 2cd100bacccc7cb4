"""The Slurm allocation that this process is in: its nodes, and the slots of each."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from launcher.errors import UsageError
from launcher.machine import process

_GROUP = re.compile(r"^\s*Nodes=(\S+)(.*)$", re.MULTILINE)
"""A line of `scontrol show job --details` for nodes with equal shares."""
_GPUS = re.compile(r"(?:GRES|GRES_IDX)=\S*?\bgpu(?::[A-Za-z][\w.-]*)?:(\d+)")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def slots_of_allocation(environ: Mapping[str, str] = os.environ) -> dict[str, int]:
    """{node: slots} in Slurm's order: its GPUs in this job, else its tasks where nodes have several, else 1.

    Raises UsageError outside of an allocation, and TargetError if Slurm does not answer.
    """
    job, listed = environ.get("SLURM_JOB_ID"), environ.get("SLURM_JOB_NODELIST")
    if not job or not listed:
        raise UsageError(
            "this is no Slurm allocation: SLURM_JOB_ID and SLURM_JOB_NODELIST are not set",
            hint="run it in a batch script, or below: salloc --nodes=2 --gpus-per-node=8",
            code="ZL-SLURM-06",
        )
    nodes = hostnames(listed)
    gpus = gpus_by_node(process.run(["scontrol", "show", "job", "--details", job], timeout=20).stdout)
    if any(gpus.get(node) for node in nodes):
        return {node: gpus.get(node, 0) for node in nodes}
    tasks = tasks_by_node(environ.get("SLURM_TASKS_PER_NODE", ""))
    return {node: tasks[place] if place < len(tasks) else 1 for place, node in enumerate(nodes)}


def hostnames(listed: str) -> list[str]:
    """The names in `node[1-3,7]`, as Slurm expands them. Raises TargetError."""
    return process.run(["scontrol", "show", "hostnames", listed], timeout=20).stdout.split()


def gpus_by_node(details: str) -> dict[str, int]:
    """{node: GPUs of the job on it} from `scontrol show job --details`."""
    found: dict[str, int] = {}
    for names, rest in _GROUP.findall(details):
        count = sum(int(number) for number in _GPUS.findall(rest))
        for node in hostnames(names) if count else ():
            found[node] = found.get(node, 0) + count
    return found


def tasks_by_node(text: str) -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]."""
    return [int(count) for count, times in _TASKS.findall(text) for _ in range(int(times or 1))]

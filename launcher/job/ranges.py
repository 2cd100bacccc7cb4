"""Numbers and names that a job accepts, beyond their types."""

from __future__ import annotations

import re
from typing import Any

from launcher.job.explain import Refusal
from launcher.job.spec import JobSpec
from train.config import POSITIVE, RANGES, Range

_RANGES: dict[str, Range] = {
    **RANGES,
    "local.gpus": Range(1),
    "local.procs": Range(1),
    "ssh.slots": Range(1),
    "ssh.connect_timeout": Range(1),
    "slurm.nodes": Range(1),
    "slurm.gpus_per_node": Range(1),
    "slurm.procs_per_node": Range(1),
    "slurm.cpus_per_task": Range(1),
    "slurm.array_limit": Range(1),
    "slurm.signal_before": Range(1, 65535),
    "slurm.max_requeues": Range(0),
    "max_restarts": Range(0),
    "heartbeat_timeout": Range(1),
    "stop_deadline": Range(1),
}
"""Every number of a job, but those that are chosen from a few."""


def check_ranges(spec: JobSpec) -> None:
    for key, accepted in _RANGES.items():
        value: Any = spec
        for part in key.split("."):
            value = getattr(value, part)
        if isinstance(value, (int, float)) and not accepted.holds(value):
            raise Refusal(key, f"{value!r} is out of range; accepted: {accepted}")
    for key, sources in (("data.train", spec.data.train), ("data.eval", spec.data.eval)):
        for source in sources if isinstance(sources, tuple) else ():
            if not isinstance(source, str) and not POSITIVE.holds(source.weight):
                said = f"weight {source.weight!r} of {source.path} is out of range; accepted: {POSITIVE}"
                raise Refusal(key, said)


def check_names(spec: JobSpec) -> None:
    if "\0" in spec.name:
        raise Refusal("name", "a NUL character cannot stand in a name")
    for name in spec.env:
        if not _VARIABLE.fullmatch(name):
            raise Refusal("env", f"{name!r} is not a name for an environment variable")
    for number, name in enumerate(spec.secrets, start=1):
        if not _VARIABLE.fullmatch(name):  # not shown: it may well be NAME=value, or the value itself
            raise Refusal(
                "secrets",
                f"entry {number} is not a name for an environment variable",
                hint="names only, for example [HF_TOKEN]; the values are taken from the environment",
            )


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

"""SlurmSpec -> the section `slurm` of plan.json, which the template slurm/train.sbatch.j2 renders. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from launcher.errors import CompatibilityError, SpecError
from launcher.job.spec import JobSpec, SlurmSpec

DEFAULT_GPUS = 8
LOG = "slurm.log"
"""Output of the batch script and of srun, in the run directory. Restarts append to it."""
FIRST_PORT, LAST_PORT = 10_000, 32_767
"""The kernel uses ports from 32768 on for outgoing connections."""
PORTS_PER_JOB = 32
CONTROL_OFFSET = 16
"""Distance from the master port, because the agent adds the number of restarts to that one."""

OPTIONS = ("partition", "account", "qos", "time", "constraint", "reservation", "nodelist", "exclude", "mem")
"""Fields of SlurmSpec that are passed on unchanged, as the option of sbatch with the same name."""

OWNED: dict[str, str] = {
    "nodes": "use slurm.nodes",
    "ntasks": "zlaunch starts one task per node",
    "ntasks-per-node": "zlaunch starts one task per node",
    "tasks-per-node": "zlaunch starts one task per node",
    "gpus-per-node": "use slurm.gpus_per_node",
    "gpus": "use slurm.gpus_per_node",
    "gpus-per-task": "use slurm.gpus_per_node",
    "clusters": "use slurm.cluster",
    "cluster": "use slurm.cluster",
    "array": "use --sweep, and slurm.array_limit for how many run at once",
    "output": f"zlaunch reads {LOG} of the run directory",
    "error": f"zlaunch reads {LOG} of the run directory",
    "open-mode": "restarts append to one log",
    "chdir": "the job runs in its run directory",
    "signal": "use slurm.signal_before",
    "requeue": "zlaunch decides; see max_restarts and slurm.max_requeues",
    "no-requeue": "use slurm.max_requeues=0",
    "wrap": "the script is train.sbatch; use slurm.template for your own",
    "parsable": "zlaunch sets it",
    "test-only": "zlaunch asks this before it submits",
    "wait": "use zlaunch slurm --wait",
    **{option: f"use slurm.{option}" for option in OPTIONS},
}
"""Options of sbatch that slurm.sbatch cannot have, and what to do instead."""


def stop_times(spec: JobSpec, kill_after: float) -> tuple[float, float]:
    """(stop_deadline, kill_after) on Slurm: a requested stop may take as long as Slurm's warning allows."""
    warned = max(spec.stop_deadline, spec.slurm.signal_before - kill_after - 15.0)
    # On Slurm, ranks that watch control/ ignore SIGTERM (agent/ranks.py: shielded), so a longer wait has no effect.
    return warned, kill_after if spec.program else 1.0


def section(spec: JobSpec, run_id: str, device: Literal["cuda", "cpu"]) -> dict[str, Any]:
    """Everything that the template of the batch script needs. Raises SpecError and CompatibilityError."""
    check(spec.slurm)
    slurm = spec.slurm
    return {
        "asked": msgspec.to_builtins(slurm),
        "ssh": {"ssh_config": spec.ssh.ssh_config, "accept_new_host_keys": spec.ssh.accept_new_host_keys},
        "options": options(spec, run_id, device),
        "srun": srun_arguments(spec),
        "procs_per_node": procs_per_node(slurm, device),
        "max_requeues": requeue_bound(spec)[0],
        "requeues_set_by": requeue_bound(spec)[1],
        "secrets": bool(spec.secret_names or spec.train.trackers),
        "notifies": bool(spec.notify.url or spec.notify.command),
        "ports": {
            "first": FIRST_PORT,
            "slots": (LAST_PORT + 1 - FIRST_PORT) // PORTS_PER_JOB,
            "each": PORTS_PER_JOB,
            "control": CONTROL_OFFSET,
        },
    }


def requeue_bound(spec: JobSpec) -> tuple[int, str]:
    """(maximum number of requeues, the setting that decides it).

    `max_restarts` takes precedence, but slurm.max_requeues=0 still forbids requeues.
    """
    if spec.slurm.max_requeues and spec.max_restarts:
        return spec.max_restarts, "max_restarts"
    return spec.slurm.max_requeues, "slurm.max_requeues"


def procs_per_node(slurm: SlurmSpec, device: Literal["cuda", "cpu"]) -> int:
    return slurm.procs_per_node if device == "cpu" else gpus_per_node(slurm)[1]


def gpus_per_node(slurm: SlurmSpec) -> tuple[str, int]:
    """Return (type of GRES, or empty for any; number) of the GPUs that a job requests per node."""
    kind, _, count = str(slurm.gpus_per_node or DEFAULT_GPUS).rpartition(":")
    return kind, int(count)


def options(spec: JobSpec, run_id: str, device: Literal["cuda", "cpu"]) -> list[list[str | None]]:
    """[option, value] of each #SBATCH line, in order; None: the option has no value."""
    slurm = spec.slurm
    lines: list[list[str | None]] = [
        ["job-name", run_id],
        ["nodes", str(slurm.nodes)],
        ["ntasks-per-node", "1"],
    ]
    if device == "cuda":
        lines.append(["gpus-per-node", ":".join(filter(None, map(str, gpus_per_node(slurm))))])
    if slurm.cpus_per_task is not None:
        lines.append(["cpus-per-task", str(slurm.cpus_per_task)])
    lines += [[option, str(getattr(slurm, option))] for option in OPTIONS if getattr(slurm, option) is not None]
    lines += [
        ["output", LOG],
        ["open-mode", "append"],
        ["signal", f"B:USR2@{slurm.signal_before}"],
        # Slurm itself queues a job again after a node failure or a preemption. The script counts these too.
        ["requeue", None] if requeue_bound(spec)[0] else ["no-requeue", None],
    ]
    if spec.elastic:
        lines.append(["no-kill", None])
    lines += [[option.lstrip("-"), value] for option, value in slurm.sbatch.items()]
    return lines


def srun_arguments(spec: JobSpec) -> list[str]:
    """Flags of srun: one task per node, the agent of that node.

    --kill-on-bad-exit is off on purpose. The agents end with 75 or 1 within a few milliseconds of each other, and Slurm
    would kill the later ones while they write their records. The agents watch each other; --wait ends the rest if one
    of them never started. An elastic run survives a lost node.
    """
    arguments = [f"--nodes={spec.slurm.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=0"]
    arguments.append(f"--wait={0 if spec.elastic else 60}")
    if spec.elastic:
        arguments.append("--no-kill")
    if spec.slurm.cpus_per_task is not None:  # since Slurm 22.05, srun does not inherit it from sbatch
        arguments.append(f"--cpus-per-task={spec.slurm.cpus_per_task}")
    # The job may have begun without the user's environment (sbatch --export), but the agents need the script's.
    arguments.append("--export=ALL")
    return [*arguments, "--input=none", "--label", "--unbuffered"]


def check(slurm: SlurmSpec) -> None:
    """Refuse what no cluster accepts. Raises SpecError and CompatibilityError."""
    check_sbatch(slurm.sbatch)
    values = [getattr(slurm, option) for option in OPTIONS] + list(slurm.sbatch.values())
    for value in values:
        if value is not None and any(ord(char) < 32 and char != "\t" for char in value):
            raise SpecError(f"slurm: {value!r}: an option of sbatch cannot contain a line break", code="ZL-SLURM-04")
    if slurm.time is not None:
        limit = seconds_of(slurm.time)
        if limit is None and slurm.time.strip().upper() not in ("UNLIMITED", "INFINITE"):
            raise SpecError(
                f"slurm.time: expected a time limit, got {slurm.time!r}",
                hint="hours:minutes:seconds, days-hours:minutes:seconds or minutes, for example 04:00:00",
                code="ZL-SLURM-04",
            )
        if limit is not None and limit <= slurm.signal_before:
            raise CompatibilityError(
                f"slurm.signal_before {slurm.signal_before} s leaves nothing of the time limit {slurm.time}",
                hint="lower slurm.signal_before or raise slurm.time",
                code="ZL-SLURM-04",
            )


def check_sbatch(further: Mapping[str, str | None]) -> None:
    """Refuse options of sbatch that zlaunch sets itself, and names that no option has. Raises SpecError."""
    for option, value in further.items():
        name = option.lstrip("-")
        if name in OWNED:
            raise SpecError(f"slurm.sbatch: `{name}` cannot be set here", hint=OWNED[name], code="ZL-SLURM-04")
        if name == "gres" and re.search(r"(^|,)(gres/)?gpu\b", value or ""):
            raise SpecError(
                f"slurm.sbatch: gres={value}: GPUs cannot be requested here",
                hint="use slurm.gpus_per_node, for example h200:2",
                code="ZL-SLURM-04",
            )
        if not name or any(not (char.isalnum() or char == "-") for char in name):
            raise SpecError(f"slurm.sbatch: {option!r} is not a valid name of an option", code="ZL-SLURM-04")


def format_seconds(seconds: float) -> str:
    """86400 -> 1-00:00:00, which Slurm can read."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hour:02}:{minute:02}:{second:02}"


def seconds_of(text: str) -> float | None:
    """Seconds of minutes, minutes:seconds, hours:minutes:seconds or days-hours[:minutes[:seconds]].

    None for UNLIMITED, INFINITE, NONE, and for text that is not a time.
    """
    match = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9})(?::([0-9]{1,9}))?(?::([0-9]{1,9}))?", text.strip())
    if match is None:
        return None
    days, *parts = match.groups()
    first, second, third = (int(part) if part is not None else None for part in parts)
    assert first is not None
    if days is not None:
        return int(days) * 86400.0 + first * 3600 + (second or 0) * 60 + (third or 0)
    if third is not None:
        return first * 3600.0 + (second or 0) * 60 + third
    return first * 60.0 + (second or 0)

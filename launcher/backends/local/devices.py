"""The GPUs or CPU ranks of this machine as a Target."""

from __future__ import annotations

import os
from collections.abc import Sequence

from launcher.errors import TargetError, UsageError
from launcher.job.spec import JobSpec
from launcher.machine import facts
from launcher.plan.types import Target
from train.config import Device


def local_target(job: JobSpec) -> Target:
    """Return the facts about this machine for a run here. Raises TargetError if it lacks what the job asks for."""
    found = facts.require_gpus(job.env) if job.device != "cpu" else facts.Gpus(())
    gpus = found.seen
    shared = bool(gpus) and os.environ.get("ZLAUNCH_SHARE_GPU") == "1"  # several ranks on GPU 0, see train/dist.py
    try:
        device, ranks = local_ranks(job, max(len(gpus), job.local.gpus or 0) if shared else len(gpus))
    except TargetError as error:  # a list that was cut, or MIG
        raise TargetError("; ".join([str(error), *found.notes]), hint=error.hint, code="ZL-GPU-03") from None
    return _target(job, device, ranks, gpus[:ranks], found.notes if gpus else ())


def assumed_target(job: JobSpec) -> Target:
    """Return a target with the ranks that the job asks for, whether or not this machine has GPUs for them.

    A check of the records needs only the shape of the batch.
    """
    on_cpu = job.device == "cpu"
    if job.device == "auto":
        found = facts.find_gpus(job.env)
        on_cpu = not found.seen and not found.error
    device: Device = "cpu" if on_cpu else "cuda"
    return _target(job, device, (job.local.procs if on_cpu else job.local.gpus) or 1, ())


def _target(job: JobSpec, device: Device, ranks: int, gpus: Sequence[facts.Gpu], notes: tuple[str, ...] = ()) -> Target:
    master_port, control_port = facts.free_ports(2)
    capabilities = [gpu.compute_capability for gpu in gpus if gpu.compute_capability]
    return Target(
        backend="local",
        device=device,
        hosts=(("localhost", ranks),),
        python=job.local.python or facts.this_python(),
        master_port=master_port,
        control_port=control_port,
        token=facts.new_token(),
        cwd=os.getcwd(),
        gpu_memory_bytes=min((gpu.memory_bytes for gpu in gpus), default=None),
        gpu_name=gpus[0].name if gpus else None,
        compute_capability=min(capabilities, default=None),
        notes=notes,
    )


def local_ranks(job: JobSpec, gpus: int) -> tuple[Device, int]:
    """Return (device, ranks) for a machine with `gpus` GPUs. Raises UsageError, TargetError."""
    if job.device == "cpu":
        if job.local.gpus:
            raise UsageError(
                "--gpus and --device cpu contradict each other", hint="on a CPU use --procs N", code="ZL-OPT-01"
            )
        return "cpu", job.local.procs or 1
    if job.local.gpus and gpus < job.local.gpus:
        hint = f"use --gpus {gpus}, or free the others" if gpus else "use --device cpu --procs N to train on the CPU"
        raise TargetError(f"{job.local.gpus} GPUs requested, {gpus} found on this machine", hint=hint, code="ZL-GPU-02")
    if job.device == "cuda" and not gpus:
        raise TargetError(
            "no GPU found on this machine", hint="use --device cpu --procs N to train on the CPU", code="ZL-GPU-01"
        )
    if not gpus:
        return "cpu", job.local.procs or 1
    return "cuda", job.local.gpus or gpus


def refuse_procs_on_gpus(procs: int | None, target: Target) -> None:
    """Refuse a --procs that would have no effect. In a job file it only applies to machines without GPUs."""
    if procs and target.device == "cuda":
        raise UsageError(
            "--procs counts ranks on a CPU, and this machine has GPUs",
            hint="use --gpus N, or --device cpu --procs N",
            code="ZL-OPT-01",
        )

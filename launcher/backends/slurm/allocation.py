"""The nodes that a job asks Slurm for, as a Target."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec

from launcher.backends.slurm import sbatch_variables
from launcher.backends.slurm.site import NOT_ASKED, Finding, Site, look
from launcher.job import inputs
from launcher.job.spec import JobSpec
from launcher.machine import facts, measured_networks
from launcher.machine.forwarded import forwarded
from launcher.plan import batch_job, gpus
from launcher.plan.types import Target
from train.config import Device

CLUSTER_PYTHON = "python3"
"""The interpreter on a cluster behind a login host, unless the job or its setup lines choose another."""


def slurm_target(job: JobSpec, known: inputs.Sums | None = None, site: Site = NOT_ASKED) -> Target:
    """Return the facts about the allocation that the job asks for. Raises DataError.

    Slurm chooses host names, address and ports when it starts the job. The plan holds placeholders, and train.sbatch
    sets the real ones. The GPUs are those of `slurm.gpu`, else what `site` says of the partition.

    With `slurm.login` this machine is not part of the cluster. Its interpreter and working directory mean nothing
    there, and input files that lie here travel by their hashes (`known`: see job.inputs).
    """
    login = job.slurm.login is not None
    device: Device = "cpu" if job.device == "cpu" else "cuda"
    procs = batch_job.procs_per_node(job.slurm, device)
    options = [str(option) for option, _ in batch_job.options(job, "", device)]
    found = _look(job, site, device, procs)
    name, memory = (found.gpu.title, found.gpu.memory_bytes) if found.gpu else (None, None)
    if job.slurm.gpu and device == "cuda":
        name, memory = gpus.parse_gpu(job.slurm.gpu)
    return Target(
        backend="slurm",
        device=device,
        hosts=tuple((f"slurm-node-{rank}", procs) for rank in range(job.slurm.nodes)),
        python=job.slurm.python or (CLUSTER_PYTHON if login else facts.this_python()),
        master_addr="127.0.0.1",
        master_port=batch_job.FIRST_PORT,
        control_port=batch_job.FIRST_PORT + batch_job.CONTROL_OFFSET,
        token=facts.new_token(),
        gpu_name=name,
        gpu_memory_bytes=memory,
        network=measured_networks.known(measured_networks.of_partition(job.slurm.partition)),
        cwd=None if login else str(Path.cwd()),
        cpus_per_task=found.cpus_per_task,
        reasons=found.reasons,
        notes=(*found.notes, *(() if login else sbatch_variables.notes(os.environ, options))),
        # sbatch itself passes this shell's variables on.
        forwarded=forwarded(os.environ, shell=login),
        paths=inputs.inputs(job, absent_ok=True, known=known)[1] if login else {},
    )


def _look(job: JobSpec, site: Site, device: Device, procs: int) -> Finding:
    """What the site says of the job, with what the user should know of it."""
    slurm = job.slurm
    cores = {"cpus-per-task", "cpus-per-gpu"} & {option.lstrip("-") for option in slurm.sbatch}
    if slurm.login is None:  # sbatch takes these from this shell
        cores |= {name for name in ("SBATCH_CPUS_PER_TASK", "SBATCH_CPUS_PER_GPU") if name in os.environ}
        taken = {name: os.environ.get(f"SBATCH_{name.upper()}") for name in ("partition", "constraint")}
        slurm = msgspec.structs.replace(slurm, **{k: v for k, v in taken.items() if v and getattr(slurm, k) is None})
    found = look(site, slurm, cores_open=not cores) if device == "cuda" else Finding()
    notes = [*found.notes]
    if found.unknown and device == "cuda" and not job.program and slurm.gpu is None:
        notes.append(
            f"not checked whether the job fits the GPUs of the nodes ({found.unknown}): "
            "name them, for example --gpu h100"
        )
    if procs > 1 and not cores and (slurm.cpus_per_task or found.cpus_per_task or 1) == 1:
        notes.append(f"all {procs} ranks of a node may share one core: use --cpus-per-task, for example {procs}")
    return replace(found, notes=tuple(notes))

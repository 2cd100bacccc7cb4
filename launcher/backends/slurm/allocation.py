"""The nodes that a job asks Slurm for, as a Target."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.backends.slurm import sbatch_variables
from launcher.job import inputs
from launcher.job.spec import JobSpec
from launcher.machine import facts
from launcher.machine.forwarded import forwarded
from launcher.plan import batch_job, gpus
from launcher.plan.types import Target
from train.config import Device

CLUSTER_PYTHON = "python3"
"""The interpreter on a cluster behind a login host, unless the job or its setup lines choose another."""


def slurm_target(job: JobSpec, known: inputs.Sums | None = None) -> Target:
    """Return the facts about the allocation that the job asks for. Raises DataError.

    Slurm chooses host names, address and ports when it starts the job. The plan holds placeholders, and train.sbatch
    sets the real ones. The GPUs are unknown too; `slurm.gpu` names those to plan for.

    With `slurm.login` this machine is not part of the cluster. Its interpreter and working directory mean nothing
    there, and input files that lie here travel by their hashes (`known`: see job.inputs).
    """
    login = job.slurm.login is not None
    device: Device = "cpu" if job.device == "cpu" else "cuda"
    procs = batch_job.procs_per_node(job.slurm, device)
    options = [str(option) for option, _ in batch_job.options(job, "", device)]
    name, memory = gpus.parse_gpu(job.slurm.gpu) if job.slurm.gpu and device == "cuda" else (None, None)
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
        cwd=None if login else str(Path.cwd()),
        notes=() if login else sbatch_variables.notes(os.environ, options),
        # sbatch itself passes this shell's variables on.
        forwarded=forwarded(os.environ, shell=login),
        paths=inputs.inputs(job, absent_ok=True, known=known)[1] if login else {},
    )

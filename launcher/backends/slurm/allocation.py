"""Facts about a Slurm cluster as the target of a run: mostly what the job itself asks for."""

from __future__ import annotations

from pathlib import Path

from launcher.job import inputs
from launcher.job.spec import JobSpec
from launcher.machine import facts
from launcher.plan import batch_job, gpus
from launcher.plan.types import Target
from train.config import Device

FAR_PYTHON = "python3"
"""The interpreter on a cluster that is reached over a login host, unless the job or its setup lines choose another."""


def slurm_target(job: JobSpec, known: inputs.Sums | None = None) -> Target:
    """The nodes that the job asks for. Their names, the address and the ports are known only when Slurm starts it:
    train.sbatch sets them, and the plan holds placeholders.

    Its GPUs cannot be looked at either: `slurm.gpu` says what they are, so that the job is planned for them.

    With `slurm.login` this machine is not of the cluster: its interpreter and its working directory mean nothing there,
    and the input files that lie here travel, by their hashes (`known`: see bundle.inputs). Raises DataError.
    """
    login = job.slurm.login is not None
    device: Device = "cpu" if job.device == "cpu" else "cuda"
    procs = batch_job.procs_per_node(job.slurm, device)
    name, size = gpus.card_of(job.slurm.gpu) if job.slurm.gpu and device == "cuda" else (None, None)
    return Target(
        backend="slurm",
        device=device,
        hosts=tuple((f"slurm-node-{rank}", procs) for rank in range(job.slurm.nodes)),
        python=job.slurm.python or (FAR_PYTHON if login else facts.this_python()),
        master_addr="127.0.0.1",
        master_port=batch_job.FIRST_PORT,
        control_port=batch_job.FIRST_PORT + batch_job.CONTROL_OFFSET,
        token=facts.new_token(),
        gpu_name=name,
        gpu_memory_bytes=size,
        cwd=None if login else str(Path.cwd()),
        paths=inputs.inputs(job, absent_ok=True, known=known)[1] if login else {},
    )

"""Facts about a Slurm cluster as the target of a run: mostly what the job itself asks for."""

from __future__ import annotations

from pathlib import Path

from launcher import facts, slurm_plan
from launcher.plan import Target
from launcher.spec import JobSpec
from train.config import Device


def slurm_target(job: JobSpec) -> Target:
    """The nodes that the job asks for. Their names, the address and the ports are known only when Slurm starts it:
    train.sbatch sets them, and the plan holds placeholders."""
    device: Device = "cpu" if job.device == "cpu" else "cuda"
    procs = slurm_plan.procs_per_node(job.slurm, device)
    return Target(
        backend="slurm",
        device=device,
        hosts=tuple((f"slurm-node-{rank}", procs) for rank in range(job.slurm.nodes)),
        python=job.slurm.python or facts.this_python(),
        master_addr="127.0.0.1",
        master_port=slurm_plan.FIRST_PORT,
        control_port=slurm_plan.FIRST_PORT + slurm_plan.CONTROL_OFFSET,
        token=facts.new_token(),
        cwd=None if job.slurm.login else str(Path.cwd()),
    )

"""What the Slurm backend refuses before it queues a job: sizes no partition allows, paths absent on the cluster."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from launcher.backends.slurm import partitions
from launcher.backends.slurm.shell import Shell
from launcher.backends.slurm.site import Site
from launcher.errors import DataError, TargetError
from launcher.job.spec import SlurmSpec
from launcher.plan import batch_job
from launcher.plan.types import RunPlan


def check_partitions(found: Site, plan: RunPlan) -> None:
    """Refuse what the cluster's partitions can never run. Raises TargetError; checks only what Slurm reports."""
    assert plan.slurm is not None
    gpus = plan.launch.nodes[0].procs if plan.launch.device == "cuda" else 0
    check_limits_of(found, msgspec.convert(plan.slurm["asked"], SlurmSpec), gpus)


def check_limits_of(found: Site, slurm: SlurmSpec, gpus: int) -> None:
    """The same for `gpus` GPUs per node."""
    partitions.check_limits(slurm, gpus, found.partitions)
    kind, _ = batch_job.gpus_per_node(slurm)
    names = partitions.chosen(slurm, found.partitions)
    here = [nodes for nodes in found.kinds if nodes.partition in names]
    if gpus and kind and here and not any(nodes.gpus.get(kind, 0) >= gpus for nodes in here):
        there = sorted({nodes.gres for nodes in here if nodes.gpus}) or ["no GPU"]
        raise TargetError(
            f"slurm.gpus_per_node: no node of partition {', '.join(map(repr, names))} has {gpus} of type {kind}",
            hint=f"Slurm reports {', '.join(there)}",
        )


def check_paths(shell: Shell, plans: Iterable[RunPlan]) -> None:
    """Refuse paths that neither travel nor exist on the cluster behind a login host. Raises DataError."""
    key_of = {path: key for plan in plans for path, key in cluster_paths(plan).items()}
    if not key_of:
        return
    # A path may be a split of a directory: DIR:train.
    script = 'for f; do [ -e "$f" ] || [ -d "${f%:*}" ] || printf "%s\\n" "$f"; done'
    result = shell.run(["bash", "-c", script, "-", *key_of])
    if absent := result.stdout.splitlines():
        key, path = key_of.get(absent[0], "the job"), absent[0]
        raise DataError(
            f"{key}: {path} is neither here nor on the login host",
            hint="data on this machine is sent with the job; a model is not: copy it to the cluster, or use a hub id",
        )


def cluster_paths(plan: RunPlan) -> dict[str, str]:
    """Return {absolute path that a run behind a login host reads on the cluster: the key that names it}."""
    if plan.train is None or plan.slurm is None or plan.slurm["asked"]["login"] is None:
        return {}
    train = plan.train
    paths = list(train.data.paths)
    paths += [("model.path", train.model.path), ("lora.adapter", train.lora.adapter or "")]
    return {path: key for key, path in paths if path.startswith("/")}

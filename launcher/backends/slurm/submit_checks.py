"""What the Slurm backend refuses before it queues a job: sizes no partition allows, paths absent on the cluster."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from launcher.backends.slurm import partitions
from launcher.backends.slurm.shell import Shell
from launcher.backends.slurm.site import Site, able_kinds
from launcher.errors import DataError, TargetError
from launcher.job.spec import SlurmSpec
from launcher.machine.process import Result
from launcher.plan import batch_job
from launcher.plan.types import RunPlan
from train.config import Device


def check_partitions(found: Site, plan: RunPlan) -> None:
    """Refuse what the cluster's partitions can never run. Raises TargetError; checks only what Slurm reports."""
    gpus = plan.launch.nodes[0].procs if plan.launch.device == "cuda" else 0
    check_limits_of(found, asked_of(plan), gpus)


def asked_of(plan: RunPlan) -> SlurmSpec:
    """What the job of a plan for Slurm asks of it."""
    assert plan.slurm is not None
    return msgspec.convert(plan.slurm["asked"], SlurmSpec)


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
            code="ZL-SLURM-03",
        )


IN_SERVICE = ("idle", "mixed", "allocated", "completing", "planned")
"""States of nodes that take jobs now or later, as sinfo writes them. A `*` after one: the node does not answer."""


def waits_for_nodes(shell: Shell, site: Site, slurm: SlurmSpec, device: Device, refusal: Result) -> str:
    """Say why `sbatch --test-only` refused a job that sbatch would queue; empty: the refusal counts.

    --test-only answers "node configuration is not available" both for a job that no node can run, and while nodes that
    could run it are drained, down or not yet back after a restart of the controller.
    """
    if "node configuration is not available" not in refusal.stdout + refusal.stderr:
        return ""
    if sum(kind.count for kind in able_kinds(site, slurm, device)) < slurm.nodes:
        return ""
    names = partitions.chosen(slurm, site.partitions)
    listed = shell.run(["sinfo", "--noheader", f"--partition={','.join(names)}", "--format=%D|%T"])
    rows = [line.strip().partition("|")[::2] for line in listed.stdout.splitlines()] if listed.code == 0 else []
    away: dict[str, int] = {}
    for count, state in rows:
        if count.isdigit() and state.rstrip("~#!%$@^-+") not in IN_SERVICE:
            away[state] = away.get(state, 0) + int(count)
    if not away:
        return ""
    states = ", ".join(f"{count} {state.replace('*', ' without an answer')}" for state, count in sorted(away.items()))
    return f"too few nodes of partition {', '.join(names)} are available now ({states}): the job waits for them"


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

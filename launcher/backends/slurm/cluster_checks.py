"""Check a Slurm cluster before a run: its answers, what it would do with the job, and what its nodes are like."""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.backends import container_choice, machine_report
from launcher.backends.checklist import Cell, Row, machine_cells
from launcher.backends.slurm.allocation import slurm_target
from launcher.backends.slurm.query import explain_sbatch
from launcher.backends.slurm.sbatch_variables import overruled
from launcher.backends.slurm.shell import Shell
from launcher.backends.slurm.site import Site, ask
from launcher.backends.slurm.submit_checks import check_limits_of, waits_for_nodes
from launcher.backends.ssh.preflight_table import PACKAGES
from launcher.errors import TargetError
from launcher.job.spec import JobSpec
from launcher.plan import batch_job
from train.config import Device

OF_THE_RUN = ("job-name", "output", "open-mode", "signal", "requeue", "no-requeue", "no-kill", "time")
"""Options of sbatch that a short look at the nodes does not have."""
NODE_SECONDS = 180.0
"""For the nodes to answer once they are allocated: nvidia-smi may need a minute."""


def examine(job: JobSpec, shell: Shell, wait: int) -> list[Row]:
    """Return a row for the cluster and one per node that answered. `wait`: seconds for free nodes; 0: ask none."""
    cluster = Row("cluster")
    version = shell.run(["sinfo", "--version"])
    try:
        site = ask(shell)
    except TargetError as error:
        cluster.cells["slurm"] = Cell("no answer", "bad", str(error).removeprefix("Slurm does not answer: "))
        return [cluster]
    cluster.cells["slurm"] = Cell(version.stdout.strip() or "answers")
    target = slurm_target(job, site=site)
    procs = target.hosts[0][1] if target.device == "cuda" else 0
    job = job.with_values({"slurm.cpus_per_task": target.cpus_per_task}) if target.cpus_per_task else job
    options = batch_job.options(job, "doctor", target.device)
    cluster.cells["partition"] = _partition(job, site, procs)
    if target.device == "cuda":
        why = {reason.setting: reason.reason for reason in target.reasons}
        reason = why.get("slurm.gpu", "slurm.gpu of the job")
        cluster.cells["gpu"] = Cell(f"{target.gpu_name}: {reason}" if target.gpu_name else "not known")
        cores = job.slurm.cpus_per_task
        cluster.cells["cores"] = Cell(f"{cores or 'not known'} per node for {procs} GPUs")
    cluster.cells["start"] = _start(shell, options, site, job, target.device)
    cluster.cells["nodes"], nodes = _nodes(job, shell, options, target.device, target.python, wait)
    if target.notes:
        cluster.cells["notes"] = Cell(f"{len(target.notes)}", "warn", "; ".join(target.notes))
    return [cluster, *nodes]


def _partition(job: JobSpec, site: Site, procs: int) -> Cell:
    name = job.slurm.partition or "the default"
    try:
        check_limits_of(site, job.slurm, procs)
    except TargetError as error:
        return Cell(name, "bad", f"{error}; {error.hint}")
    return Cell(name)


def _start(shell: Shell, options: Sequence[Sequence[str | None]], site: Site, job: JobSpec, device: Device) -> Cell:
    """When sbatch would start the job, why the job would wait, or why sbatch refuses it."""
    words = [f"--{name}={value}" if value is not None else f"--{name}" for name, value in options if name != "output"]
    result = shell.run(
        ["sbatch", "--test-only", *words, "--wrap=true"], hide=overruled(str(name) for name, _ in options)
    )
    if result.code != 0 and (waiting := waits_for_nodes(shell, site, job.slurm, device, result)):
        return Cell("not now", "warn", waiting)
    if result.code != 0:
        error = explain_sbatch(result)
        return Cell("refused", "bad", f"{str(error).splitlines()[-1].strip()}; {error.hint or 'see `man sbatch`'}")
    when = re.search(r"to start at (\S+)", result.stderr + result.stdout)
    return Cell(when[1] if when else "accepted")


def _nodes(
    job: JobSpec, shell: Shell, options: Sequence[Sequence[str | None]], device: Device, python: str, wait: int
) -> tuple[Cell, list[Row]]:
    """Have the nodes report by srun, with the options of the job."""
    if not wait:
        return Cell("not asked"), []
    in_image = container_choice.in_container(job, "slurm")
    words = [
        f"--{name}={value}" if value is not None else f"--{name}" for name, value in options if name not in OF_THE_RUN
    ]
    model = job.model.path
    paths = [model] if model.startswith(("/", "~")) and not job.program else []
    command = machine_report.command(python, PACKAGES, gpus=device == "cuda", paths=paths, env=job.env)
    # The setup lines choose the environment, as in node.sh.
    script = "\n".join([*job.slurm.setup, 'exec "$0" "$@"'])
    argv = ["srun", f"--immediate={wait}", "--time=5", "--input=none", *words, "--export=ALL", "bash", "-c", script]
    try:
        result = shell.run([*argv, *command], timeout=wait + NODE_SECONDS)
        found = machine_report.parse(result.stdout)
    except TargetError as error:
        return Cell("no answer", "warn", str(error).splitlines()[-1].strip()), []
    if not found:
        said = " ".join(line.removeprefix("srun: ").removeprefix("error: ") for line in result.last_lines[-2:])
        busy = re.search(r"Immediate|revoked|temporarily|busy", said)
        advice = f"not looked at: {said or f'exit status {result.code}'}"
        return Cell("busy" if busy else "no", "warn", f"{advice}; --wait SECONDS waits longer" if busy else advice), []
    ranks = batch_job.procs_per_node(job.slurm, device) if device == "cuda" else None
    rows = [Row(str(facts["node"]), machine_cells(job, facts, ranks, in_image)) for facts in found]
    return Cell(f"{len(rows)} answered"), sorted(rows, key=lambda row: row.host)

"""Check this machine before a run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from launcher.backends import container_choice, machine_report
from launcher.backends.checklist import Cell, Row, machine_cells, size
from launcher.backends.ssh.preflight_table import PACKAGES
from launcher.backends.ssh.requirements import MIN_FREE_BYTES
from launcher.errors import TargetError
from launcher.job.spec import JobSpec
from launcher.machine import facts, process
from launcher.rundir import find


def examine(job: JobSpec) -> Row:
    """Return what a run of the job would find here. Raises UsageError, TargetError for an impossible container."""
    in_image = container_choice.in_container(job, "local")
    python = job.local.python or facts.this_python()
    paths = [job.model.path] if job.model.path.startswith(("/", "~", ".")) and not job.program else []
    argv = machine_report.command(python, PACKAGES, gpus=job.device != "cpu", paths=paths, env=job.env)
    try:
        (found,) = machine_report.parse(process.run(argv, timeout=180).stdout)
    except (TargetError, ValueError) as error:
        advice = f"{str(error).splitlines()[-1].strip()}: name the training environment's interpreter with --python"
        return Row("here", {"python": Cell("no", "bad", advice)})
    return Row("here", {**machine_cells(job, found, job.local.gpus, in_image), "disk": _disk()})


def _disk() -> Cell:
    root = find.runs_root()
    place = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK):
        return Cell("read-only", "bad", f"cannot write into {place}: set ZLAUNCH_RUNS to a directory of your own")
    free = shutil.disk_usage(Path(place)).free
    if free < MIN_FREE_BYTES:
        return Cell(size(free), "bad", f"{size(free)} free in {place}, {size(MIN_FREE_BYTES)} needed")
    return Cell(size(free))

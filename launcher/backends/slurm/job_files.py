"""What a Slurm run keeps in its run directory and beside it: plan section, job id, secrets, events."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from launcher.backends.slurm.shell import Shell
from launcher.node import run_files
from launcher.rundir.directory import RunDir


def slurm_section(run: RunDir) -> dict[str, Any]:
    """Return the `slurm` section of plan.json; empty if there is none."""
    section = (run.read_json(run.plan_json) or {}).get("slurm")
    return section if isinstance(section, dict) else {}


def job_id(run: RunDir) -> str:
    """Return the run's job id without its cluster; empty: Slurm has not accepted the run yet."""
    ids = run.record.ids
    return ids[0].partition(";")[0] if ids else ""


def clusters_of(run: RunDir) -> tuple[str, ...]:
    """Return the cluster that has the run's job, else those that it may be in; empty: this machine's own.

    A job of another cluster, or of a federation, is recorded as sbatch prints it: `123;cluster`.
    """
    ids = run.record.ids if run.run_json.exists() else ()
    recorded = ids[0].partition(";")[2] if ids else ""
    asked = slurm_section(run).get("asked", {})
    return (recorded,) if recorded else asked_clusters(asked.get("cluster"), inherits=not (ids or asked.get("login")))


def asked_clusters(names: str | None, *, inherits: bool) -> tuple[str, ...]:
    """`a,b` of slurm.cluster -> (a, b). `inherits`: where the job leaves it open, this shell's variable counts."""
    names = names or (os.environ.get("SBATCH_CLUSTERS") if inherits else None) or ""
    return tuple(name.strip() for name in names.split(",") if name.strip())


def element(job: str, index: int) -> str:
    """Return the id of an element of an array job: `12_3` of `12`, `12_3;cluster` of `12;cluster`."""
    number, separator, cluster = job.partition(";")
    return f"{number}_{index}{separator}{cluster}"


def is_job_of(run: RunDir, job: str, name: str) -> bool:
    """Whether a job is the run's, by its id, by its name, or as an element of the array of its sweep."""
    array, index = run.record.extra.get("array") or ("", 0)
    return name == run.run_id or job == job_id(run) or (name == array and job.endswith(f"_{index}"))


def secrets_file(run: RunDir) -> Path:
    """Return the path of the secrets: beside the run directories, so that a copied or archived run never has it."""
    return run.path.parent / ".secrets" / f"{run.run_id}.json"


def begin_submission(run: RunDir) -> None:
    """Put aside what an earlier job of this run left, and mark the new submission in the events."""
    (run.control_dir / run_files.CANCELLED).unlink(missing_ok=True)
    (run.path / run_files.SLURM_ERROR).unlink(missing_ok=True)
    records = list(run.nodes_dir.glob("node-*.json"))
    if records:
        earlier = run.nodes_dir / f"before-{time.time_ns()}"
        earlier.mkdir()
        for record in records:
            record.rename(earlier / record.name)
    run.event("slurm_submit")


def last_event(run: RunDir, *names: str) -> dict[str, Any]:
    """Return the newest event with one of those names; empty if there is none."""
    return next((event for event in reversed(run.read_events()) if event.get("event") in names), {})


def append_event(shell: Shell, run: RunDir, name: str, **fields: Any) -> None:
    """Append an event on the cluster, in one write. The copy here is overwritten from there."""
    line = json.dumps({"time": time.time(), "event": name, **fields})
    append = ["bash", "-c", f'printf "%s\\n" "$1" >> {run_files.EVENTS}', "-", line]
    shell.run(append, cwd=shell.path_there(run.path))

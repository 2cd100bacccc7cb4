"""What a Slurm run keeps in its run directory and beside it: plan section, job id, secrets, events."""

from __future__ import annotations

import json
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
    """Return the run's job id; empty: Slurm has not accepted the run yet."""
    ids = run.record.ids
    return ids[0] if ids else ""


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

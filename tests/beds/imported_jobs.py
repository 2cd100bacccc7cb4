"""An imported configuration as the job that its file says."""

from __future__ import annotations

from pathlib import Path

from launcher.job.importing import imported_file
from launcher.job.importing.draft import Draft
from launcher.job.load import read_job
from launcher.job.spec import JobSpec


def job_of(draft: Draft, folder: Path) -> JobSpec:
    file = folder / "job.yaml"
    file.write_text(imported_file.text(draft, "an import"), encoding="utf-8")
    return read_job(file).spec

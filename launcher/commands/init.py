"""`zlaunch init`: write a commented job file."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.errors import UsageError
from launcher.lifecycle import job_file


@click.command()
@click.argument("file", default="job.yaml", type=click.Path(path_type=Path))
@click.option("--model", default="Qwen/Qwen3-8B", show_default=True, help="Hub id or local directory of the model.")
@click.option("--full", is_flag=True, help="Name every key, those not shown by default as comments.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def init(file: Path, model: str, full: bool, force: bool) -> None:
    """Write a commented job file (default job.yaml)."""
    if file.exists() and not force:
        raise UsageError(f"{file} exists already", hint="overwrite it with --force")
    try:
        file.write_text(job_file.commented_job(model, full=full), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"wrote {file}; next: set model and data in it, then zlaunch local {file} --dry-run")

"""`zlaunch init`: write a commented job file."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.errors import UsageError
from launcher.lifecycle import job_file
from launcher.machine.language import spoken


@click.command()
@click.argument("file", default="job.yaml", type=click.Path(path_type=Path))
@click.option("--model", default="Qwen/Qwen3-8B", show_default=True, help="Hub id or local directory of the model.")
@click.option("--full", is_flag=True, help="Name every key, those not shown by default as comments.")
@click.option("--from", "source", metavar="FILE|COMMAND", help="Import a configuration of another program.")
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs of the imported run, where its configuration is silent.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def init(file: Path, model: str, full: bool, source: str | None, gpus: int | None, force: bool) -> None:
    """Write a commented job file (default job.yaml).

    --from reads files and commands of LLaMA-Factory, axolotl, ms-swift and TRL, TrainingArguments as JSON, and
    configurations of DeepSpeed. It reports every word that it does not carry over.
    """
    if file.exists() and not force:
        raise UsageError(f"{file} exists already", hint="overwrite it with --force", code="ZL-FILE-01")
    if gpus and not source:
        raise UsageError("--gpus has no effect without --from", code="ZL-OPT-01")
    text, notes = (
        (job_file.commented_job(model, full=full, chinese=spoken.is_chinese()), [])
        if source is None
        else (job_file.imported_job(source, gpus, full=full))
    )
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}", code="ZL-FILE-02") from error
    for note in notes:
        click.echo(spoken.shown(note))
    step = spoken.said("set model and data in it") if source is None else spoken.said("read its comments")
    click.echo(spoken.said("wrote {file}; next: {step}, then zlaunch local {file} --dry-run", file=file, step=step))

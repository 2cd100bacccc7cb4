"""`zlaunch templates`: the stock batch script, and how your own differs from it."""

from __future__ import annotations

import difflib
from pathlib import Path

import click

from launcher.errors import UsageError
from launcher.machine import installation

TEMPLATES = ("train.sbatch.j2",)
"""Templates that can be replaced (slurm.template)."""


@click.group()
def templates() -> None:
    """Use your own batch script: eject the stock one, edit it, and give it with --template or slurm.template."""


@templates.command("list")
def list_() -> None:
    """List the templates that can be replaced."""
    for name in TEMPLATES:
        click.echo(f"{name}  {source(name)}")


@templates.command()
@click.argument("name", default="train.sbatch.j2")
@click.option(
    "--to", "to", type=click.Path(path_type=Path), help="File to write (default: NAME in the working directory)."
)
def eject(name: str, to: Path | None) -> None:
    """Copy the stock template NAME, to be edited."""
    target = to or Path(name)
    if target.exists():
        raise UsageError(f"{target} exists already", hint=f"zlaunch templates diff {target} shows how it differs")
    stock = source(name).read_text(encoding="utf-8")
    try:
        target.write_text(stock, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    click.echo(
        f"wrote {target}\n  zlaunch slurm --template {target} ...   or in the job: slurm: {{template: {target}}}"
    )


@templates.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", default="train.sbatch.j2", help="The stock template to compare with.")
def diff(file: Path, name: str) -> int:
    """Show how FILE differs from the stock template. Exits with 1 if it does."""
    try:
        own = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    stock = source(name).read_text(encoding="utf-8")
    lines = list(difflib.unified_diff(stock.splitlines(True), own.splitlines(True), f"stock {name}", str(file)))
    click.echo("".join(lines), nl=False)
    return 1 if lines else 0


def source(name: str) -> Path:
    """The stock file. Raises UsageError that lists the known names."""
    if name not in TEMPLATES:
        raise UsageError(f"no template {name!r}", hint=f"known: {', '.join(TEMPLATES)}")
    return installation.path("slurm") / name

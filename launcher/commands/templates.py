"""`zlaunch templates`: the stock files of a run, and how your own differ from them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

import click

from launcher.errors import UsageError
from launcher.machine import installation


class Template(NamedTuple):
    folder: installation.Kind
    key: str
    """The key of the job that takes a file of the user's own."""
    about: str
    use: str = "zlaunch slurm JOB --set {key}={file}"


TEMPLATES = {
    "train.sbatch.j2": Template("slurm", "slurm.template", "the batch script", "zlaunch slurm --template {file} ..."),
    "node.sh.j2": Template("templates", "node_template", "what starts the agent of a node, on every backend"),
    "ds_config.json": Template("templates", "train.ds_config", "a DeepSpeed configuration; auto: filled in by zlaunch"),
    "hostfile": Template(
        "templates", "ssh.hostfile", "hosts and ranks of `zlaunch ssh`", "zlaunch ssh --hostfile {file} ..."
    ),
}
"""Files that can be replaced."""


@click.group()
def templates() -> None:
    """Use files of your own: eject a stock one, edit it, and name it in the job."""


@templates.command("list")
def list_() -> None:
    """List the files that can be replaced, and the key of the job for each."""
    for name, template in TEMPLATES.items():
        click.echo(f"{name:16} {template.key:16} {template.about}\n  {source(name)}")


@templates.command()
@click.argument("name", default="train.sbatch.j2")
@click.option(
    "--to", "to", type=click.Path(path_type=Path), help="File to write (default: NAME in the working directory)."
)
def eject(name: str, to: Path | None) -> None:
    """Copy the stock file NAME, to be edited: train.sbatch.j2, node.sh.j2, ds_config.json or hostfile."""
    stock = source(name).read_text(encoding="utf-8")
    target = to or Path(name)
    if target.exists():
        raise UsageError(
            f"{target} exists already", hint=f"zlaunch templates diff {target} shows how it differs", code="ZL-FILE-01"
        )
    try:
        target.write_text(stock, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}", code="ZL-FILE-02") from error
    key = TEMPLATES[name].key
    section, _, last = key.rpartition(".")
    in_job = f"{section}: {{{last}: {target}}}" if section else f"{last}: {target}"
    click.echo(f"wrote {target}\n  {TEMPLATES[name].use.format(key=key, file=target)}   or in the job: {in_job}")


@templates.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="The stock file to compare with (default: the one of the same name, else the script).")
def diff(file: Path, name: str | None) -> int:
    """Show how FILE differs from the stock file. Exits with 1 if it does."""
    name = name or (file.name if file.name in TEMPLATES else "train.sbatch.j2")
    try:
        own = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", code="ZL-FILE-02") from error
    stock = source(name).read_text(encoding="utf-8")
    lines = list(difflib.unified_diff(stock.splitlines(True), own.splitlines(True), f"stock {name}", str(file)))
    click.echo("".join(lines), nl=False)
    return 1 if lines else 0


def source(name: str) -> Path:
    """The stock file. Raises UsageError that lists the known names."""
    if name not in TEMPLATES:
        raise UsageError(f"no template {name!r}", hint=f"known: {', '.join(TEMPLATES)}", code="ZL-OPT-03")
    return installation.path(TEMPLATES[name].folder) / name

"""`zlaunch image save|load|list`: the training image on hosts without a registry."""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec

from launcher.errors import UsageError
from launcher.images import transfer
from launcher.images.lock import lock_path, read_lock

_engine = click.option("--engine", type=click.Choice(["docker", "podman"]), default="docker", show_default=True)


@click.group()
def image() -> None:
    """Move the training image to hosts without a registry."""


@image.command()
@click.argument("tag")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--directory", is_flag=True, help="Write an unpacked directory, for Charliecloud.")
@_engine
def save(tag: str, file: Path, directory: bool, engine: str) -> None:
    """Write an image to FILE: .tar (docker, podman), .sif (Apptainer) or .sqsh (enroot, pyxis).

    A .sif, a .sqsh or a directory on a shared file system saves a pull on every node.
    """
    pinned = read_lock().pinned(tag)
    if directory:
        transfer.export_directory(engine, pinned, file.absolute())
    else:
        if file.exists():
            raise UsageError(f"{file} exists already", code="ZL-FILE-01")
        # By name, not by digest: a tar keeps the name only then, and the other formats look it up by name.
        transfer.save_archive(engine, tag, file)
    click.echo(f"wrote {file} ({pinned})")


@image.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@_engine
def load(file: Path, engine: str) -> None:
    """Load a .tar written by `image save` into the engine of this host."""
    click.echo(transfer.load_archive(engine, file))


@image.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_(as_json: bool) -> None:
    """List the images in image.lock."""
    images = read_lock().images
    if as_json:
        for tag, locked in images.items():
            click.echo(json.dumps({"tag": tag, **msgspec.structs.asdict(locked)}))
        return
    if not images:
        click.echo(f"no images in {lock_path()}; build one with zlaunch build", err=True)
    for tag, locked in images.items():
        click.echo(f"{tag}  {locked.digest or locked.id}  {locked.variant}  {locked.built}")

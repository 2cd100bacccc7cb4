"""`zlaunch build`: build the training image and pin it in image.lock."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.errors import TargetError
from launcher.images import builder
from launcher.images.engine import check_engine
from launcher.images.lock import lock_path, read_lock, write_lock
from launcher.machine import installation, process


@click.command()
@click.option(
    "--variant",
    type=click.Choice(["cuda", "cuda12", "cpu"]),
    default="cuda",
    show_default=True,
    help="Device to build for: CUDA 13, CUDA 12 (drivers before 580, Volta) or the CPU.",
)
@click.option("--tag", help="Name of the image (default: zlaunch:VERSION-VARIANT).")
@click.option("--base-image", help="Base image, preferably by digest.")
@click.option(
    "--engine", type=click.Choice(["docker", "podman"]), default="docker", show_default=True, help="Engine that builds."
)
@click.option("--push", is_flag=True, help="Push the image, and pin the digest from the registry.")
@click.option(
    "--wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory filled by docker/fetch_wheels.sh: no package index is asked, and without --network no network.",
)
@click.option("--network", help="Network for the build steps, as the engine names it, such as host.")
def build(
    variant: builder.Variant,
    tag: str | None,
    base_image: str | None,
    engine: str,
    push: bool,
    wheels: Path | None,
    network: str | None,
) -> None:
    """Build the training image and pin it in image.lock."""
    request = builder.Build(
        variant, tag or builder.default_tag(variant), base_image, engine, wheels is not None, network
    )
    check_engine(engine)
    lock, revision = builder.lock_hash(variant), installation.source_revision()
    with builder.build_context(wheels) as context:
        code = process.passthrough(builder.build_argv(request, context, revision=revision, lock=lock))
    if code != 0:
        hint = f"see its output above; if the disk is full, {engine} system df shows what uses it"
        raise TargetError(f"{engine} build failed with exit code {code}", hint=hint, code="ZL-IMAGE-05")
    if push and process.passthrough([engine, "push", request.tag]) != 0:
        raise TargetError(
            f"{engine} push {request.tag} failed",
            hint=f"see its output above; is {engine} login needed?",
            code="ZL-IMAGE-05",
        )
    built = builder.locked_image(request, revision=revision, lock=lock)
    write_lock(read_lock().with_image(request.tag, built))
    click.echo(f"{request.tag} is {built.digest or built.id}; recorded in {lock_path()}")
    click.echo(f"next: zlaunch local --container {engine} --image {request.tag}")

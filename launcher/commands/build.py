"""`zlaunch build`: build the training image and pin it in image.lock."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.errors import TargetError, UsageError
from launcher.images import builder
from launcher.images.engine import check_engine
from launcher.images.lock import lock_path, read_lock, write_lock
from launcher.machine import process


@click.command()
@click.option("--variant", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--tag", help="Name of the image; default zlaunch:VERSION-VARIANT.")
@click.option("--base-image", help="Base image, best by digest.")
@click.option("--engine", type=click.Choice(["docker", "podman"]), default="docker", show_default=True)
@click.option("--push", is_flag=True, help="Push it, and pin the digest that the registry gives it.")
@click.option(
    "--wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory that docker/fetch_wheels.sh filled; the build then uses no network and no index.",
)
@click.option("--network", help="Network of the build's steps, as the engine calls it (for example host).")
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
    if wheels and network:
        raise UsageError("--wheels and --network contradict each other", hint="with --wheels the build has no network")
    wanted = builder.Build(
        variant, tag or builder.default_tag(variant), base_image, engine, wheels is not None, network
    )
    check_engine(engine)
    lock, revision = builder.lock_hash(variant), builder.source_revision()
    with builder.build_context(wheels) as context:
        code = process.passthrough(builder.build_argv(wanted, context, revision=revision, lock=lock))
    if code != 0:
        hint = f"its own words are above; where the space went, if none is left: {engine} system df"
        raise TargetError(f"{engine} build failed with status {code}", hint=hint)
    if push and process.passthrough([engine, "push", wanted.tag]) != 0:
        raise TargetError(f"{engine} push {wanted.tag} failed", hint=f"its own words are above; {engine} login?")
    built = builder.locked_image(wanted, revision=revision, lock=lock)
    write_lock(read_lock().with_image(wanted.tag, built))
    click.echo(f"{wanted.tag} is {built.digest or built.id}; recorded in {lock_path()}")
    click.echo(f"next: zlaunch local --container {engine} --image {wanted.tag}")

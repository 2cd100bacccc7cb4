"""`zlaunch build`: the engine's arguments, the build context, and the record of the image that was built."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher import __version__
from launcher.images.engine import image_id, repository_digest
from launcher.images.lock import LockedImage
from launcher.machine import installation

Variant = Literal["cuda", "cuda12", "cpu"]

_PYTHON = (
    "docker.io/library/python:3.12-slim-bookworm"
    "@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254"
)
BASE_IMAGES: dict[str, str | None] = {
    "cuda": None,  # the Dockerfile's own default
    "cuda12": _PYTHON,  # torch's wheels bring CUDA; NVIDIA's image for 13 refuses to start on older drivers
    "cpu": _PYTHON,
}
"""Variant -> base image by digest."""


@dataclass(frozen=True)
class Build:
    """What `zlaunch build` was asked for."""

    variant: Variant
    tag: str
    base_image: str | None = None
    engine: str = "docker"
    offline: bool = False
    """The context has all packages, so the build gets no network unless it is named."""
    network: str | None = None


def default_tag(variant: str) -> str:
    return f"zlaunch:{__version__}-{variant}"


def build_argv(build: Build, context: Path, *, revision: str, lock: str) -> tuple[str, ...]:
    """The engine's build command for a staged context; `lock` is `lock_hash(...)`."""
    base_image = build.base_image or BASE_IMAGES[build.variant]
    network = build.network or ("none" if build.offline else None)
    arguments = {
        "VARIANT": build.variant,
        "VERSION": __version__,
        "REVISION": revision,
        "LOCK_SHA256": lock,
        **({"OFFLINE": "1"} if network == "none" else {}),
        **({"BASE_IMAGE": base_image} if base_image else {}),
    }
    return (
        build.engine,
        "build",
        f"--file={context / 'docker' / 'Dockerfile'}",
        f"--tag={build.tag}",
        *([f"--network={network}"] if network else []),
        *(f"--build-arg={name}={value}" for name, value in arguments.items()),
        str(context),
    )


@contextlib.contextmanager
def build_context(wheels: Path | None = None) -> Iterator[Path]:
    """A temporary directory with everything that the Dockerfile copies, from a checkout or an installed wheel.

    `wheels`, a directory from docker/fetch_wheels.sh, becomes docker/requirements/wheels in it.
    """
    skip = shutil.ignore_patterns("__pycache__", "*.pyc", "wheels")
    package = installation.PACKAGE
    with tempfile.TemporaryDirectory(prefix="zlaunch-build-") as name:
        context = Path(name)
        inner = shutil.ignore_patterns("__pycache__", "*.pyc", "templates", "docker", "slurm")
        shutil.copytree(package, context / "launcher", ignore=inner)
        (context / "launcher" / installation.REVISION_FILE).write_text(installation.source_revision(), encoding="utf-8")
        for name in ("train", "zlaunch"):
            shutil.copytree(package.parent / name, context / name, ignore=skip)
        for kind in ("templates", "docker", "slurm"):
            shutil.copytree(installation.path(kind), context / kind, ignore=skip)
        if wheels is not None:
            shutil.copytree(wheels, context / "docker/requirements/wheels", copy_function=_link_or_copy)
        yield context


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def lock_hash(variant: str) -> str:
    """sha256 of the files that decide which packages the image gets."""
    requirements = installation.path("docker") / "requirements"
    content = b"".join((requirements / name).read_bytes() for name in ("build.txt", f"{variant}.txt", "train.in"))
    return hashlib.sha256(content).hexdigest()


def locked_image(build: Build, *, revision: str, lock: str) -> LockedImage:
    """The record of an image that was just built. Runs the engine."""
    return LockedImage(
        id=image_id(build.engine, build.tag),
        digest=repository_digest(build.engine, build.tag),
        variant=build.variant,
        base_image=build.base_image or BASE_IMAGES[build.variant] or _dockerfile_base(),
        lock=f"sha256:{lock}",
        version=__version__,
        revision=revision,
        built=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _dockerfile_base() -> str:
    lines = (installation.path("docker") / "Dockerfile").read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith("ARG BASE_IMAGE="))

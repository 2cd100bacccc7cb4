"""Which engine and which image a run gets."""

from __future__ import annotations

import shutil
from pathlib import Path

from launcher.backends.hub_caches import with_caches
from launcher.errors import TargetError, UsageError
from launcher.images.engine import first_engine, image_id
from launcher.images.lock import read_lock
from launcher.job.spec import ContainerSpec, JobSpec
from launcher.plan.container import NO_CONTAINER, ContainerChoice
from launcher.plan.engines.table import PROGRAMS, EngineName, Runtime, engines_for


def choose_container(spec: JobSpec, backend: str, device: str) -> ContainerChoice:
    """The engine, the image by digest and the hub caches of a run; NO_CONTAINER without an engine.

    On this machine the engine is asked whether it runs and has the image. Other hosts show that when the run starts.
    Raises UsageError and TargetError.
    """
    runtime, reason = runtime_of(spec, backend)
    if runtime == "none":
        return NO_CONTAINER
    image = image_of(spec.container, runtime, device)
    if image is None:
        raise UsageError(
            f"container.runtime is {runtime}, and container.image names no image",
            hint=f"zlaunch build --variant {device}, or --image NAME",
            code="ZL-IMAGE-02",
        )
    if backend == "local" and runtime != "pyxis":
        _check_image(runtime, image)
    return with_caches(ContainerChoice(runtime, image, reason), spec, backend)


def runtime_of(spec: JobSpec, backend: str) -> tuple[Runtime, str]:
    """(what a run is in, why `auto` became it); decided before any host is asked.

    Raises UsageError, and on this machine TargetError.
    """
    runtime, image = spec.container.runtime, spec.container.image
    if runtime == "auto":
        return _engine_for(image, backend) if image else ("none", "")
    if runtime == "pyxis" and backend != "slurm":
        raise UsageError(
            "pyxis is a plugin of Slurm", hint=f"use --container {' or '.join(PROGRAMS)}", code="ZL-IMAGE-01"
        )
    return runtime, ""


def in_container(spec: JobSpec, backend: str) -> bool:
    """Whether a run brings its environment in an image."""
    return runtime_of(spec, backend)[0] != "none"


def image_of(container: ContainerSpec, runtime: Runtime, device: str) -> str | None:
    """The image that the job names, else the newest that was built for the device; pinned by content for an engine
    that knows images by content. None: there is neither. Raises UsageError for a lock file that cannot be read."""
    lock = read_lock()
    image = container.image or lock.newest(device)
    return lock.pinned(image) if image and runtime in ("docker", "podman") else image


def _engine_for(image: str, backend: str) -> tuple[EngineName, str]:
    """What `auto` means for an image, and why. On other hosts the form of the image alone decides.

    Raises UsageError and TargetError.
    """
    engines, form = engines_for(image)
    if backend != "local":
        return engines[0], f"{image} is {form}; use --container ENGINE for another engine"
    if engines == ("charliecloud",) and Path(image).is_file():
        raise UsageError(
            f"container.image: {image} is a file of an unknown kind",
            hint="name a .sif file, a .sqsh file or a directory; or choose the engine with --container",
            code="ZL-IMAGE-02",
        )
    engine = first_engine(engines)
    return engine, f"{image} is {form}, and {PROGRAMS[engine]} is on this machine"


def _check_image(engine: EngineName, image: str) -> None:
    if engine in ("docker", "podman"):
        image_id(engine, image)
    elif shutil.which(PROGRAMS[engine]) is None:
        raise TargetError(
            f"{PROGRAMS[engine]} is not installed here",
            hint="use --container with an installed engine",
            code="ZL-IMAGE-01",
        )
    elif "://" not in image and not Path(image).exists():
        raise TargetError(
            f"no image {image} here", hint="write it with: zlaunch image save TAG FILE", code="ZL-IMAGE-02"
        )

"""Which engine and which image a run gets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import msgspec

from launcher.errors import TargetError, UsageError
from launcher.images import caches
from launcher.images.engine import first_engine, image_id
from launcher.images.lock import read_lock
from launcher.job.spec import ContainerSpec, JobSpec
from launcher.plan.container import PROGRAMS, EngineName, SettledJob, engines_for


def settled(spec: JobSpec, backend: str, device: str) -> JobSpec:
    """The job with its engine and image decided: runtime `none`, or an engine with an image by digest.

    On this machine the engine is asked whether it runs and has the image; on other hosts that shows when the run
    starts. Raises UsageError and TargetError.
    """
    engine, why = engine_of(spec, backend)
    if engine == "none":
        return msgspec.structs.replace(spec, container=ContainerSpec(runtime="none"))
    image = image_of(spec.container, engine, device)
    if image is None:
        raise UsageError(
            f"container.runtime is {engine}, and container.image names no image",
            hint=f"zlaunch build --variant {device}, or --image NAME",
        )
    if backend == "local" and engine != "pyxis":
        _check_image(engine, image)
    job = SettledJob(**{name: getattr(spec, name) for name in JobSpec.__struct_fields__}, why_engine=why)
    decided = msgspec.structs.replace(job.container, runtime=engine, image=image)
    return caches.with_caches(_with_home(msgspec.structs.replace(job, container=decided)), backend)


Runtime = EngineName | Literal["pyxis", "none"]
"""What a run is in: an engine's container, a task of pyxis, or none."""


def engine_of(spec: JobSpec, backend: str) -> tuple[Runtime, str]:
    """(what a run is in, why where the job did not say); known before any host is asked. Raises UsageError, and on this
    machine TargetError."""
    runtime, image = spec.container.runtime, spec.container.image
    if runtime == "auto":
        return _engine_for(image, backend) if image else ("none", "")
    if runtime == "pyxis" and backend != "slurm":
        raise UsageError("pyxis is a plugin of Slurm", hint=f"say --container {' or '.join(PROGRAMS)}")
    return runtime, ""


def in_container(spec: JobSpec, backend: str) -> bool:
    """Whether a run brings its environment in an image."""
    return engine_of(spec, backend)[0] != "none"


def image_of(wanted: ContainerSpec, engine: Runtime, device: str) -> str | None:
    """The image that is named, else the newest that was built for the device, by content where the engine knows it so;
    None: there is neither. Raises UsageError for a lock that cannot be read."""
    lock = read_lock()
    image = wanted.image or lock.newest(device)
    return lock.pinned(image) if image and engine in ("docker", "podman") else image


def _engine_for(image: str, backend: str) -> tuple[EngineName, str]:
    """What `auto` means for an image, and why. Elsewhere nobody has looked which engines there are, so the image's form
    alone decides. Raises UsageError and TargetError."""
    engines, form = engines_for(image)
    if backend != "local":
        return engines[0], f"{image} is {form}; say --container ENGINE for another engine"
    if engines == ("charliecloud",) and Path(image).is_file():
        raise UsageError(
            f"container.image: {image} is a file of no known kind",
            hint="a .sif, a .sqsh or a directory; or --container",
        )
    engine = first_engine(engines)
    return engine, f"{image} is {form}, and {PROGRAMS[engine]} is on this machine"


def _check_image(engine: EngineName, image: str) -> None:
    if engine in ("docker", "podman"):
        image_id(engine, image)
    elif shutil.which(PROGRAMS[engine]) is None:
        raise TargetError(f"{PROGRAMS[engine]} is not installed here", hint="say --container with an engine that is")
    elif "://" not in image and not Path(image).exists():
        raise TargetError(f"no image {image} here", hint="write it with: zlaunch image save TAG FILE")


def _with_home(spec: SettledJob) -> SettledJob:
    """`~` is this user's home here, as in a job file (spec.load): inside, HOME is another place."""
    path = spec.model.path
    if not path.startswith("~"):
        return spec
    model = msgspec.structs.replace(spec.model, path=str(Path(path).expanduser()))
    return msgspec.structs.replace(spec, model=model)

"""Ask an engine on this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence

from launcher.errors import TargetError
from launcher.images.refusals import explain
from launcher.machine import process
from launcher.plan.engines.table import PROGRAMS, EngineName


def run(argv: Iterable[str | os.PathLike[str]], engine: str, image: str = "") -> str:
    """The standard output of an engine's command. Raises TargetError that says what is wrong and what to do."""
    try:
        return process.run(list(argv)).stdout
    except process.CommandError as error:
        raise explain(error, engine, image) from error


def check_engine(engine: str) -> None:
    """Raise TargetError unless the engine is installed, runs, and accepts this user."""
    run([engine, "version", "--format", "{{.Server.Version}}" if engine == "docker" else "{{.Client.Version}}"], engine)


def inspect(engine: str, image: str, template: str) -> str:
    return run([engine, "image", "inspect", "--format", template, image], engine, image).strip()


def image_id(engine: str, image: str) -> str:
    """`sha256:...` of an image that the engine has. Raises TargetError."""
    answer = inspect(engine, image, "{{.Id}}")
    return answer if answer.startswith("sha256:") else f"sha256:{answer}"


def repository_digest(engine: str, image: str) -> str | None:
    """`name@sha256:...` of the image in its registry; None for an image that was only built or loaded."""
    answer = inspect(engine, image, "{{range .RepoDigests}}{{println .}}{{end}}").split()
    fitting = [digest for digest in answer if repository(digest) == repository(image)]
    return fitting[0] if fitting else None


def repository(image: str) -> str:
    """The full name of an image without tag and digest.

    docker says `zl`; podman says `docker.io/library/zl`, or `localhost/zl` for an image that it built itself.
    """
    name = image.partition("@")[0]
    if ":" in name.rpartition("/")[2]:
        name = name.rpartition(":")[0]
    first, slash, _ = name.partition("/")
    if not slash:
        return f"docker.io/library/{name}"
    if first == "localhost" and name.count("/") == 1:
        return f"docker.io/library/{name.partition('/')[2]}"
    return name if "." in first or ":" in first or first == "localhost" else f"docker.io/{name}"


def first_engine(engines: Sequence[EngineName]) -> EngineName:
    """The first of these engines that this machine has. Raises TargetError."""
    for engine in engines:
        if shutil.which(PROGRAMS[engine]):
            return engine
    programs = " or ".join(PROGRAMS[engine] for engine in engines)
    raise TargetError(
        f"no {' or '.join(engines)} on this machine, which this image needs",
        hint=f"install {programs}, or use --container ENGINE (or none)",
        code="ZL-IMAGE-01",
    )

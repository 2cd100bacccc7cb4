"""Asking an engine on this machine, and what its refusals mean."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping

from launcher.errors import TargetError
from launcher.machine import process
from launcher.plan.engines import PROGRAMS, EngineName

PROBLEMS: tuple[tuple[str, str, str], ...] = (
    ("permission denied", "this user may not use {program}", "add the user to the group `docker`, or use podman"),
    ("Cannot connect", "{program} is not running", "start it, or set DOCKER_HOST to the one that is"),
    ("no such file or directory", "{program} is not running", "start it, or set DOCKER_HOST to the one that is"),
    ("No space left", "no space left for {program}'s images", "free space: {program} system df; {program} image prune"),
    ("o such image", "no image {image} here", "build it (zlaunch build), load it (zlaunch image load) or pull it"),
    ("image not known", "no image {image} here", "build it (zlaunch build), load it (zlaunch image load) or pull it"),
)
"""(text in the engine's answer, what it means, what to do next); the first that fits."""


def run(argv: Iterable[str | os.PathLike[str]], engine: str, image: str = "") -> str:
    """Run an engine's command; its standard output. Raises TargetError that says what is wrong and what to do."""
    try:
        return process.run(list(argv)).stdout
    except process.CommandError as error:
        raise explain(error, engine, image) from error


def explain(error: process.CommandError, engine: str, image: str = "") -> TargetError:
    """The engine's answer as one of PROBLEMS, else the answer itself."""
    found = diagnosis(error.result.code, error.result.stderr, engine, image)
    if found is None:
        return error
    last = (error.result.last_lines or [""])[-1] if error.result.stderr else ""
    return TargetError(found[0] + (f"\n  {last}" if last else ""), hint=found[1])


def diagnosis(code: int, stderr: str, engine: str, image: str) -> tuple[str, str] | None:
    """(what is wrong, what to do) of an engine's refusal; None for an answer that is in no table."""
    if code == 127 and not stderr:
        others = ", ".join(name for name in PROGRAMS if name != engine)
        return f"{engine} is not installed here", f"install it, or choose another engine: {others}"
    for text, meaning, hint in PROBLEMS:
        if text.lower() in stderr.lower():  # libc and Go do not agree on capitals
            values = {"program": engine, "image": image}
            return meaning.format(**values), hint.format(**values)
    return None


def check_engine(engine: str) -> None:
    """Raises TargetError unless the engine is installed, running and open to this user."""
    run([engine, "version", "--format", "{{.Server.Version}}" if engine == "docker" else "{{.Client.Version}}"], engine)


def ask(engine: str, image: str, template: str) -> str:
    return run([engine, "image", "inspect", "--format", template, image], engine, image).strip()


def image_id(engine: str, image: str) -> str:
    """`sha256:...` of an image that the engine has. Raises TargetError."""
    answer = ask(engine, image, "{{.Id}}")
    return answer if answer.startswith("sha256:") else f"sha256:{answer}"


def repository_digest(engine: str, image: str) -> str | None:
    """`name@sha256:...` under which a registry knows the image; None for one that was only built or loaded."""
    answer = ask(engine, image, "{{range .RepoDigests}}{{println .}}{{end}}").split()
    fitting = [digest for digest in answer if repository(digest) == repository(image)]
    return fitting[0] if fitting else None


def repository(image: str) -> str:
    """The image's name without tag and digest, in full: docker says `zl` where podman says `docker.io/library/zl`, or
    `localhost/zl` of one that it built itself."""
    name = image.partition("@")[0]
    if ":" in name.rpartition("/")[2]:
        name = name.rpartition(":")[0]
    first, slash, _ = name.partition("/")
    if not slash:
        return f"docker.io/library/{name}"
    if first == "localhost" and name.count("/") == 1:
        return f"docker.io/library/{name.partition('/')[2]}"
    return name if "." in first or ":" in first or first == "localhost" else f"docker.io/{name}"


def first_engine(engines: Iterable[EngineName], environ: Mapping[str, str] = os.environ) -> EngineName:
    """The first of these engines that this machine has. Raises TargetError."""
    engines = tuple(engines)
    for engine in engines:
        if shutil.which(PROGRAMS[engine], path=environ.get("PATH")):
            return engine
    programs = " or ".join(PROGRAMS[engine] for engine in engines)
    raise TargetError(
        f"no {' or '.join(engines)} on this machine, which this image needs",
        hint=f"install {programs}, or say --container ENGINE (or none)",
    )

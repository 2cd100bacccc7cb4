"""Check that all hosts of a run have its image, and the same one: what to ask each host, and what its answer means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.backends.container_choice import image_of, runtime_of
from launcher.images.refusals import diagnosis
from launcher.job.spec import JobSpec
from launcher.remote.fleet import Fleet

INSPECT_TIMEOUT = 65
MAKE_EQUAL = "name the image by its digest, or copy one everywhere (zlaunch image save, zlaunch image load)"
"""The advice for hosts whose images differ."""


@dataclass(frozen=True)
class Question:
    """What to ask each host of a run about its image."""

    engine: str
    image: str
    argv: tuple[str, ...]
    """The engine's arguments before the image; empty for an image that is a file or a directory."""
    environ: Mapping[str, str]


@dataclass(frozen=True)
class HostImage:
    """A host's answer."""

    id: str = ""
    digests: frozenset[str] = frozenset()
    problem: str = ""
    advice: str = ""


def question(spec: JobSpec, device: str) -> Question | None:
    """None: the job runs in no container, or its hosts fetch the image when the run starts."""
    engine, _ = runtime_of(spec, "ssh")
    name = None if engine == "none" else image_of(spec.container, engine, device)
    if engine == "none" or engine == "pyxis" or not name:
        return None
    if engine in ("docker", "podman"):
        template = "{{.Id}}{{range .RepoDigests}} {{.}}{{end}}"
        return Question(engine, name, (engine, "image", "inspect", "--format", template), spec.env)
    return None if "://" in name else Question(engine, name, (), spec.env)


def answer(asked: Question, said: Mapping[str, Any]) -> HostImage:
    """The meaning of what the far end's `image` returned on a host."""
    if said["code"] == 0:
        words = said["said"].split()
        if asked.argv and words:
            own = words[0] if words[0].startswith("sha256:") else f"sha256:{words[0]}"
            return HostImage(own, frozenset(word.partition("@")[2] for word in words[1:]))
        return HostImage("" if said.get("size") is None else f"{said['size']} bytes")
    if not asked.argv:
        return HostImage(problem=f"no image {asked.image} here", advice="write it with: zlaunch image save TAG FILE")
    found = diagnosis(said["code"], said["said"], asked.engine, asked.image)
    last = (said["said"].strip().splitlines() or [f"status {said['code']}"])[-1]
    problem, advice = found or (f"{asked.engine}: {last}", f"look there: {' '.join(asked.argv)} {asked.image}")
    return HostImage(problem=problem, advice=advice)


def different(answers: Mapping[int, HostImage]) -> dict[int, str]:
    """{host: the image that most hosts have}, for each host with another image under the same name.

    Two images with one registry digest are the same, even if their engines gave them different ids.
    """
    images = {rank: found for rank, found in answers.items() if not found.problem}
    usual = max(
        images.values(), key=lambda image: sum(_same(image, other) for other in images.values()), default=HostImage()
    )
    return {rank: usual.id for rank, found in images.items() if not _same(found, usual)}


def _same(image: HostImage, other: HostImage) -> bool:
    return image.id == other.id or bool(image.digests & other.digests)


def ask_images(fleet: Fleet, job: JobSpec, device: str, ranks: Iterable[int]) -> dict[int, HostImage]:
    """Return what each host has under the name of the job's image; empty for a job without a container."""
    asked = question(job, device)
    if asked is None:
        return {}
    replies, failures = fleet.for_each_host(
        lambda _, session: session.call(
            "image",
            engine=list(asked.argv),
            name=asked.image,
            environ=dict(asked.environ),
            timeout=INSPECT_TIMEOUT,
        ),
        ranks,
    )
    images = {rank: answer(asked, reply) for rank, reply in replies.items()}
    return {**images, **{rank: HostImage(problem=str(error)) for rank, error in failures.items()}}


def image_problems(images: Mapping[int, HostImage]) -> dict[int, list[str]]:
    """Return why hosts cannot run the image, each with what to do. Pure."""
    differing = different(images)
    problems: dict[int, list[str]] = {rank: [] for rank in images}
    for rank, image in images.items():
        if image.problem:
            problems[rank] = ["; ".join(filter(None, (image.problem, image.advice)))]
        elif rank in differing:
            problems[rank] = [f"its image is {image.id}, but {differing[rank]} on most hosts; {MAKE_EQUAL}"]
    return problems

"""Whether the hosts of a run have its image, all the same one: what they are asked, and what their answers mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.images.choose import image_of, runtime_of
from launcher.images.refusals import diagnosis
from launcher.job.spec import JobSpec

MAKE_EQUAL = "name the image by its digest, or copy one everywhere (zlaunch image save, zlaunch image load)"
"""What to do about hosts whose images differ."""


@dataclass(frozen=True)
class Question:
    """What every host of a run is asked about its image."""

    engine: str
    image: str
    argv: tuple[str, ...]
    """The engine's words up to the image; none for an image that is a file or a directory."""
    environ: Mapping[str, str]


@dataclass(frozen=True)
class HostImage:
    """A host's answer."""

    id: str = ""
    digests: frozenset[str] = frozenset()
    problem: str = ""
    advice: str = ""


def question(spec: JobSpec, device: str) -> Question | None:
    """None: the job runs in no container, or in an image that hosts only fetch when they start it."""
    engine, _ = runtime_of(spec, "ssh")
    name = None if engine == "none" else image_of(spec.container, engine, device)
    if engine == "none" or engine == "pyxis" or not name:
        return None
    if engine in ("docker", "podman"):
        template = "{{.Id}}{{range .RepoDigests}} {{.}}{{end}}"
        return Question(engine, name, (engine, "image", "inspect", "--format", template), spec.env)
    return None if "://" in name else Question(engine, name, (), spec.env)


def answer(asked: Question, said: Mapping[str, Any]) -> HostImage:
    """What the far end's `image` returned on one host."""
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
    """{host: the image that most hosts have} for every host that has another one under the same name.

    A registry's digest that two hosts share makes their images the same, whatever ids their engines gave them.
    """
    there = {rank: found for rank, found in answers.items() if not found.problem}
    usual = max(there.values(), key=lambda one: sum(_same(one, other) for other in there.values()), default=HostImage())
    return {rank: usual.id for rank, found in there.items() if not _same(found, usual)}


def _same(one: HostImage, other: HostImage) -> bool:
    return one.id == other.id or bool(one.digests & other.digests)

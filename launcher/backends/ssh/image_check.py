"""Check that all hosts have the image of a job, and the same one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from launcher.images import on_hosts
from launcher.images.on_hosts import HostImage
from launcher.job.spec import JobSpec
from launcher.remote.fleet import Fleet

INSPECT_TIMEOUT = 65


def ask_images(fleet: Fleet, job: JobSpec, device: str, ranks: Iterable[int]) -> dict[int, HostImage]:
    """Return what each host has under the name of the job's image; empty for a job without a container."""
    question = on_hosts.question(job, device)
    if question is None:
        return {}
    answers, failures = fleet.for_each_host(
        lambda _, session: session.call(
            "image",
            engine=list(question.argv),
            name=question.image,
            environ=dict(question.environ),
            timeout=INSPECT_TIMEOUT,
        ),
        ranks,
    )
    images = {rank: on_hosts.answer(question, answer) for rank, answer in answers.items()}
    return {**images, **{rank: HostImage(problem=str(error)) for rank, error in failures.items()}}


def image_problems(images: Mapping[int, HostImage]) -> dict[int, list[str]]:
    """Return why hosts cannot run the image, each with what to do. Pure."""
    differing = on_hosts.different(images)
    problems: dict[int, list[str]] = {rank: [] for rank in images}
    for rank, image in images.items():
        if image.problem:
            problems[rank] = ["; ".join(filter(None, (image.problem, image.advice)))]
        elif rank in differing:
            problems[rank] = [f"its image is {image.id}, but {differing[rank]} on most hosts; {on_hosts.MAKE_EQUAL}"]
    return problems

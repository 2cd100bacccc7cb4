"""What an engine's refusals mean, and what to do about them."""

from __future__ import annotations

from launcher.errors import TargetError
from launcher.machine.process import CommandError
from launcher.plan.engines.table import PROGRAMS

PROBLEMS: tuple[tuple[str, str, str], ...] = (
    ("permission denied", "this user may not use {program}", "add the user to the group `docker`, or use podman"),
    ("Cannot connect", "{program} is not running", "start it, or set DOCKER_HOST to the one that runs"),
    ("no such file or directory", "{program} is not running", "start it, or set DOCKER_HOST to the one that runs"),
    ("No space left", "no space left for {program}'s images", "free space: {program} system df; {program} image prune"),
    ("o such image", "no image {image} here", "build it (zlaunch build), load it (zlaunch image load) or pull it"),
    ("image not known", "no image {image} here", "build it (zlaunch build), load it (zlaunch image load) or pull it"),
)
"""(text in the engine's answer, what it means, what to do next); the first match counts."""


def explain(error: CommandError, engine: str, image: str = "") -> TargetError:
    """The engine's answer as one of PROBLEMS, else the answer itself."""
    found = diagnosis(error.result.code, error.result.stderr, engine, image)
    if found is None:
        return error
    last = (error.result.last_lines or [""])[-1] if error.result.stderr else ""
    return TargetError(found[0] + (f"\n  {last}" if last else ""), hint=found[1], code="ZL-IMAGE-03")


def diagnosis(code: int, stderr: str, engine: str, image: str) -> tuple[str, str] | None:
    """(what is wrong, what to do) for an engine's refusal; None for an answer that the table does not have."""
    if code == 127 and not stderr:
        others = ", ".join(name for name in PROGRAMS if name != engine)
        return f"{engine} is not installed here", f"install it, or choose another engine: {others}"
    for text, meaning, hint in PROBLEMS:
        if text.lower() in stderr.lower():  # libc and Go write capitals differently
            values = {"program": engine, "image": image}
            return meaning.format(**values), hint.format(**values)
    return None

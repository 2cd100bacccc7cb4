"""A container engine that answers as a test wants, and jobs in containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.images.lock import LockedImage
from launcher.job.spec import ContainerSpec, JobSpec, Model

LOCKED = LockedImage(
    id="sha256:aa", variant="cpu", base_image="b@sha256:1", lock="sha256:l", version="0.1.0", revision="r", built="t"
)


def container(**settings) -> JobSpec:
    return JobSpec(model=Model(path="/m", source="huggingface"), container=ContainerSpec(**settings))


def fake_engine(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

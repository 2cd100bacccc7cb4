"""Building the image; the engine itself is in tests/container."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from launcher import __version__
from launcher.images import builder
from launcher.images.builder import Build
from launcher.machine import installation

DOCKER = installation.path("docker")


def test_the_build_command_names_variant_lock_and_revision():
    build = Build("cpu", "zl:1", base_image="base:tiny")
    argv = builder.build_argv(build, Path("/ctx"), revision="abc", lock="f00")
    assert argv == (
        "docker", "build", "--file=/ctx/docker/Dockerfile", "--tag=zl:1", "--build-arg=VARIANT=cpu",
        f"--build-arg=VERSION={__version__}", "--build-arg=REVISION=abc", "--build-arg=LOCK_SHA256=f00",
        "--build-arg=BASE_IMAGE=base:tiny", "/ctx",
    )  # fmt: skip


def test_a_build_from_wheels_has_no_network():
    argv = builder.build_argv(Build("cpu", "zl:1", offline=True), Path("/ctx"), revision="r", lock="l")
    assert "--network=none" in argv
    assert "--build-arg=OFFLINE=1" in argv  # nor may it ask apt for what the image can do without


def test_default_base_images_are_pinned_by_digest():
    defaults = [base or builder._dockerfile_base() for base in builder.BASE_IMAGES.values()]
    assert len(defaults) == 3
    assert all(re.fullmatch(r"[\w./:-]+@sha256:[0-9a-f]{64}", base) for base in defaults)


def test_the_build_context_holds_what_the_dockerfile_copies_and_nothing_else(tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a.whl").write_text("a")
    with builder.build_context(tmp_path / "wheels") as context:
        copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (context / "docker/Dockerfile").read_text(), re.MULTILINE)
        assert all((context / word).exists() for line in copied for word in line.split())
        assert (context / "docker/requirements/wheels/a.whl").read_text() == "a"
        assert sorted(path.name for path in context.iterdir()) == [
            *("docker", "launcher", "slurm", "templates", "train", "zlaunch")
        ]
        assert not list(context.rglob("*.pyc"))
    assert not context.exists()


def test_a_changed_lock_changes_the_hash_that_labels_the_image(tmp_path, monkeypatch):
    shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns("wheels"))
    monkeypatch.setattr(installation, "path", lambda kind: tmp_path / kind)
    before = builder.lock_hash("cpu")
    with (tmp_path / "docker/requirements/cpu.txt").open("a") as file:
        file.write("# x\n")
    assert builder.lock_hash("cpu") != before

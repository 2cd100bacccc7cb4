"""An image as a file: which commands make it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.errors import UsageError
from launcher.images import transfer
from tests.beds.image_bed import fake_engine


@pytest.mark.parametrize(
    ("engine", "ending", "expected"),
    [
        ("docker", "tar", ["docker save --output={file} zl:1"]),
        ("podman", "tar", ["podman save --output={file} zl:1"]),
        ("docker", "sif", ["apptainer build {file} docker-daemon:zl:1"]),
        (
            "podman",
            "sif",
            [
                "podman save --format=docker-archive --output={scratch} zl:1",
                "apptainer build {file} docker-archive:{scratch}",
            ],
        ),
        ("docker", "sqsh", ["enroot import --output={file} dockerd://zl:1"]),
        ("podman", "sqsh", ["enroot import --output={file} podman://zl:1"]),
    ],
)
def test_an_image_is_saved_from_the_engine_that_has_it(tmp_path, monkeypatch, engine, ending, expected):
    for program in ("docker", "podman", "apptainer", "enroot"):
        fake_engine(tmp_path / "bin", program, f'echo "{program} $*" >> {tmp_path}/calls', monkeypatch)
    file = tmp_path / f"zl.{ending}"
    transfer.save_archive(engine, "zl:1", file)
    lines = re.sub(r"/[^ :=]*/\.zlaunch-image-[^/]*/image\.tar", "{scratch}", (tmp_path / "calls").read_text())
    assert lines.replace(str(file), "{file}").splitlines() == expected
    assert not list(tmp_path.glob(".zlaunch-image-*"))


def test_a_missing_directory_is_reported_before_an_engine_runs(tmp_path):
    for save in (transfer.save_archive, transfer.export_directory):
        with pytest.raises(UsageError, match="no directory"):
            save("docker", "zl:1", tmp_path / "nowhere" / "zl.tar")


def test_only_archives_are_loaded_into_an_engine(tmp_path, monkeypatch):
    fake_engine(tmp_path / "bin", "podman", 'echo "Loaded: $*"', monkeypatch)
    assert transfer.load_archive("podman", Path("/s/zl.tar")) == "Loaded: load --input=/s/zl.tar"
    with pytest.raises(UsageError, match="needs no loading"):
        transfer.load_archive("podman", Path("/s/zl.sif"))


def test_the_ending_of_an_archive_decides_its_format():
    assert transfer.archive_of(Path("/s/zl.tar")).load
    assert not transfer.archive_of(Path("/s/zl.sif")).load
    with pytest.raises(UsageError, match="the ending of the name decides"):
        transfer.archive_of(Path("/s/zl.zip"))

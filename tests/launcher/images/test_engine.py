"""What an engine's answers mean; the engine itself is in tests/container."""

from __future__ import annotations

import pytest

from launcher.errors import TargetError
from launcher.images import engine
from launcher.machine import process
from tests.beds.image_bed import fake_engine


@pytest.mark.parametrize(
    ("stderr", "meaning"),
    [
        ("permission denied while trying to connect to the Docker daemon socket", "this user may not use docker"),
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", "docker is not running"),
        ("write /var/lib/docker/x: No space left on device", "no space left"),
        ("write /var/lib/docker/x: no space left on device", "no space left"),
        ("Error: No such image: zl:1", "no image zl:1 here"),
    ],
)
def test_the_engines_answer_becomes_a_clear_error(tmp_path, monkeypatch, stderr, meaning):
    fake_engine(tmp_path / "bin", "docker", f"echo '{stderr}' >&2; exit 1", monkeypatch)
    with pytest.raises(TargetError, match=meaning) as raised:
        engine.image_id("docker", "zl:1")
    assert raised.value.hint
    assert stderr in str(raised.value)


def test_an_unknown_answer_of_the_engine_is_shown_as_it_is(tmp_path, monkeypatch):
    fake_engine(tmp_path / "bin", "docker", "echo 'strange thing' >&2; exit 3", monkeypatch)
    with pytest.raises(process.CommandError, match="strange thing"):
        engine.image_id("docker", "zl:1")


def test_an_absent_engine_names_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="podman is not installed") as raised:
        engine.check_engine("podman")
    assert "docker" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("name", "digests", "found"),
    [
        ("zl:1", "r/other-zl@sha256:1 other-zl@sha256:2", None),
        ("zl:1", "other-zl@sha256:2 zl@sha256:3", "zl@sha256:3"),
        ("zl:1", "docker.io/library/zl@sha256:4", "docker.io/library/zl@sha256:4"),
        ("zl", "localhost/zl@sha256:5", "localhost/zl@sha256:5"),
        (
            "localhost:5000/team/zl:1",
            "team/zl@sha256:6 localhost:5000/team/zl@sha256:7",
            "localhost:5000/team/zl@sha256:7",
        ),
        ("team/zl:1", "docker.io/team/zl@sha256:8", "docker.io/team/zl@sha256:8"),
    ],
)
def test_a_digest_belongs_to_the_image_of_the_same_whole_name(tmp_path, monkeypatch, name, digests, found):
    fake_engine(tmp_path / "bin", "docker", f"echo {digests}", monkeypatch)
    assert engine.repository_digest("docker", name) == found

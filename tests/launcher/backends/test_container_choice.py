"""Which engine and which image a run gets; the engines themselves are in tests/container."""

from __future__ import annotations

import pytest

from launcher.backends.container_choice import choose_container, in_container
from launcher.errors import TargetError, UsageError
from launcher.images.lock import ImageLock, write_lock
from launcher.plan.container import NO_CONTAINER
from tests.beds.image_bed import LOCKED, container, fake_engine


def test_no_container_is_used_without_an_image(lock_file):
    assert choose_container(container(), "local", "cpu") == NO_CONTAINER


def test_an_engine_without_an_image_says_how_to_get_one(lock_file):
    with pytest.raises(UsageError, match="names no image") as raised:
        choose_container(container(runtime="docker"), "local", "cpu")
    assert "zlaunch build --variant cpu" in (raised.value.hint or "")


def test_the_newest_built_image_of_the_device_is_taken_and_pinned(lock_file, tmp_path, monkeypatch):
    fake_engine(tmp_path / "bin", "docker", "echo sha256:aa", monkeypatch)
    write_lock(ImageLock().with_image("zl:cpu", LOCKED))
    chosen = choose_container(container(runtime="docker"), "local", "cpu")
    assert chosen.image == "sha256:aa"


def test_auto_takes_the_first_installed_engine(lock_file, tmp_path, monkeypatch):
    fake_engine(tmp_path / "bin", "podman", "echo aa", monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert choose_container(container(image="zl:1"), "local", "cpu").runtime == "podman"


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("zl", "docker"),
        ("r.example.com:5000/team/zl:1", "docker"),
        ("sha256:aa", "docker"),
        ("/shared/zl.sif", "apptainer"),
        ("docker://r/zl:1", "apptainer"),
        ("/shared/zl.sqsh", "enroot"),
        ("/shared/zl", "charliecloud"),
    ],
)
@pytest.mark.parametrize("backend", ["ssh", "slurm"])
def test_auto_on_other_hosts_is_decided_by_the_images_form_and_says_why(lock_file, backend, name, engine):
    chosen = choose_container(container(image=name), backend, "cuda")
    assert chosen.runtime == engine
    assert chosen.reason.startswith(f"{name} is a")
    named = choose_container(container(image=name, runtime=engine), backend, "cuda")
    assert named.reason == ""  # nothing was chosen for the user


@pytest.mark.parametrize("runtime", ["auto", "none", "docker", "charliecloud"])
@pytest.mark.parametrize("name", [None, "zl:1", "/shared/zl.sif"])
@pytest.mark.parametrize("backend", ["ssh", "slurm"])
def test_whether_a_run_is_in_a_container_is_known_before_any_host_is_contacted(lock_file, backend, name, runtime):
    write_lock(ImageLock().with_image("zl:cpu", LOCKED))
    asked = container(runtime=runtime, image=name)
    chosen = choose_container(asked, backend, "cpu")
    assert in_container(asked, backend) is (chosen.runtime != "none")


def test_an_archive_is_refused_because_no_engine_runs_it(lock_file):
    with pytest.raises(UsageError, match="archive") as raised:
        choose_container(container(image="/shared/zl.tar"), "ssh", "cuda")
    assert "zlaunch image load" in (raised.value.hint or "")


def test_auto_here_takes_an_engine_that_runs_this_form_of_image(lock_file, tmp_path, monkeypatch):
    fake_engine(tmp_path / "bin", "docker", "echo sha256:aa", monkeypatch)
    (tmp_path / "zl.sif").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(TargetError, match="no apptainer on this machine"):
        choose_container(container(image=str(tmp_path / "zl.sif")), "local", "cpu")
    fake_engine(tmp_path / "bin", "apptainer", "", monkeypatch)
    assert choose_container(container(image=str(tmp_path / "zl.sif")), "local", "cpu").runtime == "apptainer"


def test_pyxis_without_slurm_is_refused(lock_file):
    with pytest.raises(UsageError, match="plugin of Slurm"):
        choose_container(container(runtime="pyxis", image="i"), "ssh", "cuda")

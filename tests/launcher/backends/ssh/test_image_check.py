"""What hosts are asked about a run's image, and what their answers mean."""

from __future__ import annotations

from launcher.backends.ssh import image_check
from launcher.backends.ssh.image_check import HostImage, Question
from launcher.images.lock import ImageLock, write_lock
from launcher.job.spec import ContainerSpec, JobSpec
from launcher.node.farend import host
from tests.beds.image_bed import LOCKED, container, fake_engine


def test_hosts_are_asked_about_the_engine_that_auto_will_mean(lock_file):
    asked = image_check.question(container(image="zl:1"), "cuda")
    assert asked is not None
    assert asked.engine == "docker"


ASKED = Question("docker", "zl:1", ("docker", "image", "inspect"), {})


def host_image(stdout: str = "", code: int = 0) -> HostImage:
    return image_check.answer(ASKED, {"code": code, "said": stdout})


def test_hosts_with_another_image_than_most_are_found():
    found = {0: host_image("sha256:aa\n"), 1: host_image("bb\n"), 2: host_image("sha256:aa\n")}
    assert image_check.different(found) == {1: "sha256:aa"}


def test_a_shared_registry_digest_makes_images_equal_whatever_ids_their_engines_gave():
    one, other = host_image("sha256:aa r/zl@sha256:dd\n"), host_image("sha256:bb mirror/zl@sha256:dd\n")
    assert image_check.different({0: one, 1: other}) == {}


def test_a_host_without_the_image_is_a_problem_but_not_a_difference():
    absent = host_image("Error: No such image: zl:1\n", code=1)
    assert "no image zl:1 here" in absent.problem
    assert "zlaunch image load" in absent.advice
    assert image_check.different({0: host_image("sha256:aa\n"), 1: absent}) == {}
    assert "docker is not installed" in host_image(code=127).problem
    assert "strange" in host_image("strange thing\n", code=3).problem


def test_hosts_are_asked_about_the_pinned_image_and_about_nothing_without_a_container(lock_file):
    write_lock(ImageLock().with_image("zl:cpu", LOCKED))
    asked = image_check.question(container(runtime="docker", image="zl:cpu"), "cpu")
    assert asked is not None
    assert (asked.argv[0], asked.image) == ("docker", "sha256:aa")
    assert image_check.question(container(), "cpu") is None


def test_the_far_end_says_what_its_own_engine_says(tmp_path, monkeypatch):
    fake_engine(tmp_path / "bin", "docker", 'echo "sha256:$WHICH r/zl@sha256:dd"', monkeypatch)
    asked = image_check.question(
        JobSpec(container=ContainerSpec(runtime="docker", image="zl:1"), env={"WHICH": "cc"}), "cpu"
    )
    assert asked is not None
    reply = host.image(asked.argv, asked.image, dict(asked.environ))
    assert image_check.answer(asked, reply) == HostImage("sha256:cc", frozenset({"sha256:dd"}))
    assert host.image(["podman"], "zl:1", {"PATH": str(tmp_path)})["code"] == 127


def test_an_image_file_must_be_on_every_host_and_have_the_same_size(tmp_path):
    asked = image_check.question(container(runtime="apptainer", image=str(tmp_path / "zl.sif")), "cpu")
    assert asked is not None
    assert "no image" in image_check.answer(asked, host.image([], asked.image, {})).problem
    (tmp_path / "zl.sif").write_bytes(b"12345")
    here = image_check.answer(asked, host.image([], asked.image, {}))
    assert image_check.different({0: here, 1: here, 2: HostImage("6 bytes")}) == {2: "5 bytes"}

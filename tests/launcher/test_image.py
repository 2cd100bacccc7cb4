"""Building the image, pinning it, and what the engine's answers mean; the engine itself is in tests/container."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from launcher import assets, farend, image, process
from launcher.container import SettledJob
from launcher.errors import TargetError, UsageError
from launcher.image import Build, ImageLock, LockedImage
from launcher.spec import ContainerSpec, JobSpec, Model

DOCKER = assets.path("docker")
LOCKED = LockedImage(
    id="sha256:aa", variant="cpu", base_image="b@sha256:1", lock="sha256:l", version="0.1.0", revision="r", built="t"
)


def container(**settings) -> JobSpec:
    return JobSpec(model=Model(path="/m", source="huggingface"), container=ContainerSpec(**settings))


@pytest.fixture
def lock_file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ZLAUNCH_IMAGE_LOCK", str(tmp_path / "image.lock"))
    return tmp_path / "image.lock"


def fake_engine(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_build_command_names_variant_lock_and_revision():
    build = Build("cpu", "zl:1", base_image="base:tiny")
    argv = image.build_argv(build, Path("/ctx"), revision="abc", lock="f00")
    assert argv == (
        "docker", "build", "--file=/ctx/docker/Dockerfile", "--tag=zl:1", "--build-arg=VARIANT=cpu",
        f"--build-arg=VERSION={image.__version__}", "--build-arg=REVISION=abc", "--build-arg=LOCK_SHA256=f00",
        "--build-arg=BASE_IMAGE=base:tiny", "/ctx",
    )  # fmt: skip


def test_a_build_from_wheels_has_no_network():
    argv = image.build_argv(Build("cpu", "zl:1", offline=True), Path("/ctx"), revision="r", lock="l")
    assert "--network=none" in argv
    assert "--build-arg=OFFLINE=1" in argv  # nor may it ask apt for what the image can do without


@pytest.mark.parametrize("pid_1", [True, False])
def test_the_entrypoint_runs_the_program_behind_tini_only_where_there_is_one(tmp_path, monkeypatch, pid_1):
    script = (DOCKER / "entrypoint.sh").read_text()
    script = script.replace('"$$" = 1', "1 = 1") if pid_1 else script
    (tmp_path / "entry.sh").write_text(script)
    argv = ["/bin/sh", tmp_path / "entry.sh", "/bin/echo", "a b"]
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert subprocess.check_output(argv, text=True) == "a b\n"
    fake_engine(tmp_path / "bin", "tini", 'echo "tini $*"', monkeypatch)
    assert subprocess.check_output(argv, text=True) == ("tini -g -- /bin/echo a b\n" if pid_1 else "a b\n")


@pytest.mark.parametrize(
    ("has", "offline", "asked"),
    [
        ({"python3", "apt-get"}, "0", "tini"),
        ({"apt-get"}, "0", "ca-certificates python3 tini"),
        ({"python3", "tini", "apt-get"}, "0", ""),
        ({"python3", "apt-get"}, "1", ""),
        ({"python3"}, "0", ""),
    ],
)
def test_the_image_gets_tini_whether_or_not_its_base_has_python(tmp_path, has, offline, asked):
    text = (DOCKER / "Dockerfile").read_text()
    (step,) = re.findall(r"AS base\n.*?^RUN (.*?[^\\])\n\n", text, re.MULTILINE | re.DOTALL)
    for name in ("python3", "tini", "apt-get", "rm"):
        if name in has | {"rm"}:
            (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/said\n')
            (tmp_path / name).chmod(0o755)
    environ = {"PATH": str(tmp_path), "OFFLINE": offline}
    output = subprocess.check_output(["/bin/sh", "-ec", step], text=True, env=environ)
    said = (tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""
    installed = re.findall(r"install -y --no-install-recommends (.*)", said)
    assert installed == ([asked] if asked else [])
    assert ("docker run --init" in output) == ("tini" not in has and not asked)


def test_default_base_images_are_pinned_by_digest():
    defaults = [*filter(None, image.BASE_IMAGES.values()), image._dockerfile_base()]
    assert len(defaults) == 2
    assert all(re.fullmatch(r"[\w./:-]+@sha256:[0-9a-f]{64}", base) for base in defaults)


def test_the_build_context_holds_what_the_dockerfile_copies_and_nothing_else(tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a.whl").write_text("a")
    with image.build_context(tmp_path / "wheels") as context:
        copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (context / "docker/Dockerfile").read_text(), re.MULTILINE)
        assert all((context / word).exists() for line in copied for word in line.split())
        assert (context / "docker/requirements/wheels/a.whl").read_text() == "a"
        assert sorted(path.name for path in context.iterdir()) == ["docker", "launcher", "slurm", "templates", "train"]
        assert not list(context.rglob("*.pyc"))
    assert not context.exists()


def test_a_changed_lock_changes_the_hash_that_labels_the_image(tmp_path, monkeypatch):
    shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns("wheels"))
    monkeypatch.setattr(assets, "path", lambda kind: tmp_path / kind)
    before = image.lock_hash("cpu")
    with (tmp_path / "docker/requirements/cpu.txt").open("a") as file:
        file.write("# x\n")
    assert image.lock_hash("cpu") != before


def test_the_lock_remembers_images_and_pins_by_digest_before_id(lock_file):
    pushed = msgspec.structs.replace(LOCKED, digest="r/zl@sha256:bb", variant="cuda")
    image.write_lock(ImageLock().with_image("zl:cpu", LOCKED).with_image("r/zl:cuda", pushed))
    lock = image.read_lock()
    assert lock.pinned("zl:cpu") == "sha256:aa"
    assert lock.pinned("r/zl:cuda") == "r/zl@sha256:bb"
    assert lock.pinned("other:1") == "other:1"
    assert (lock.newest("cpu"), lock.newest("cuda")) == ("zl:cpu", "r/zl:cuda")


def test_a_rebuilt_image_becomes_the_newest(lock_file):
    lock = ImageLock().with_image("a", LOCKED).with_image("b", LOCKED).with_image("a", LOCKED)
    assert lock.newest("cpu") == "a"


def test_a_broken_lock_is_an_error_with_its_place(lock_file):
    lock_file.write_text("{")
    with pytest.raises(UsageError, match=r"image\.lock"):
        image.read_lock()


def test_no_container_is_asked_for_without_an_image(lock_file):
    assert image.settled(container(), "local", "cpu").container.runtime == "none"


def test_an_engine_without_an_image_says_how_to_get_one(lock_file):
    with pytest.raises(UsageError, match="names no image") as raised:
        image.settled(container(runtime="docker"), "local", "cpu")
    assert "zlaunch build --variant cpu" in (raised.value.hint or "")


def test_the_newest_built_image_of_the_device_is_taken_and_pinned(lock_file, tmp_path, monkeypatch):
    fake_engine(tmp_path / "bin", "docker", "echo sha256:aa", monkeypatch)
    image.write_lock(ImageLock().with_image("zl:cpu", LOCKED))
    settled = image.settled(container(runtime="docker"), "local", "cpu")
    assert settled.container.image == "sha256:aa"


def test_auto_takes_the_first_engine_that_is_there(lock_file, tmp_path, monkeypatch):
    fake_engine(tmp_path / "bin", "podman", "echo aa", monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert image.settled(container(image="zl:1"), "local", "cpu").container.runtime == "podman"


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
    settled = image.settled(container(image=name), backend, "cuda")
    assert isinstance(settled, SettledJob)
    assert settled.container.runtime == engine
    assert settled.why_engine.startswith(f"{name} is a")
    named = image.settled(container(image=name, runtime=engine), backend, "cuda")
    assert isinstance(named, SettledJob)
    assert named.why_engine == ""  # nothing was chosen for the user


def test_hosts_are_asked_about_the_engine_that_auto_will_mean(lock_file):
    asked = image.question(container(image="zl:1"), "cuda")
    assert asked is not None
    assert asked.engine == "docker"


@pytest.mark.parametrize("runtime", ["auto", "none", "docker", "charliecloud"])
@pytest.mark.parametrize("name", [None, "zl:1", "/shared/zl.sif"])
@pytest.mark.parametrize("backend", ["ssh", "slurm"])
def test_whether_a_run_is_in_a_container_is_known_before_its_hosts_are(lock_file, backend, name, runtime):
    image.write_lock(ImageLock().with_image("zl:cpu", LOCKED))
    asked = container(runtime=runtime, image=name)
    settled = image.settled(asked, backend, "cpu")
    assert image.in_container(asked, backend) is (settled.container.runtime != "none")
    assert image.in_container(settled, backend) is image.in_container(asked, backend)


def test_an_archive_is_refused_because_no_engine_runs_it(lock_file):
    with pytest.raises(UsageError, match="archive") as raised:
        image.settled(container(image="/shared/zl.tar"), "ssh", "cuda")
    assert "zlaunch image load" in (raised.value.hint or "")


def test_auto_here_takes_an_engine_that_runs_this_form_of_image(lock_file, tmp_path, monkeypatch):
    fake_engine(tmp_path / "bin", "docker", "echo sha256:aa", monkeypatch)
    (tmp_path / "zl.sif").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(TargetError, match="no apptainer on this machine"):
        image.settled(container(image=str(tmp_path / "zl.sif")), "local", "cpu")
    fake_engine(tmp_path / "bin", "apptainer", "", monkeypatch)
    assert image.settled(container(image=str(tmp_path / "zl.sif")), "local", "cpu").container.runtime == "apptainer"


def test_pyxis_without_slurm_is_refused(lock_file):
    with pytest.raises(UsageError, match="plugin of Slurm"):
        image.settled(container(runtime="pyxis", image="i"), "ssh", "cuda")


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("permission denied while trying to connect to the Docker daemon socket", "this user may not use docker"),
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", "docker is not running"),
        ("write /var/lib/docker/x: No space left on device", "no space left"),
        ("write /var/lib/docker/x: no space left on device", "no space left"),
        ("Error: No such image: zl:1", "no image zl:1 here"),
    ],
)
def test_the_engines_answer_becomes_a_clear_error(tmp_path, monkeypatch, said, meaning):
    fake_engine(tmp_path / "bin", "docker", f"echo '{said}' >&2; exit 1", monkeypatch)
    with pytest.raises(TargetError, match=meaning) as raised:
        image.image_id("docker", "zl:1")
    assert raised.value.hint
    assert said in str(raised.value)


def test_an_unknown_answer_of_the_engine_is_shown_as_it_is(tmp_path, monkeypatch):
    fake_engine(tmp_path / "bin", "docker", "echo 'strange thing' >&2; exit 3", monkeypatch)
    with pytest.raises(process.CommandError, match="strange thing"):
        image.image_id("docker", "zl:1")


def test_an_absent_engine_names_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="podman is not installed") as raised:
        image.check_engine("podman")
    assert "docker" in (raised.value.hint or "")


@pytest.mark.parametrize("backend", ["ssh", "slurm"])
def test_a_model_below_the_home_directory_has_its_full_path_inside(lock_file, monkeypatch, backend):
    monkeypatch.setenv("HOME", "/home/u")
    job = JobSpec(model=Model(path="~/m"), container=ContainerSpec(runtime="docker", image="i"))
    assert image.settled(job, backend, "cuda").model.path == "/home/u/m"


@pytest.mark.parametrize(
    ("engine", "ending", "said"),
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
def test_an_image_is_saved_from_the_engine_that_has_it(tmp_path, monkeypatch, engine, ending, said):
    for program in ("docker", "podman", "apptainer", "enroot"):
        fake_engine(tmp_path / "bin", program, f'echo "{program} $*" >> {tmp_path}/said', monkeypatch)
    file = tmp_path / f"zl.{ending}"
    image.save_archive(engine, "zl:1", file)
    lines = re.sub(r"/[^ :=]*/\.zlaunch-image-[^/]*/image\.tar", "{scratch}", (tmp_path / "said").read_text())
    assert lines.replace(str(file), "{file}").splitlines() == said
    assert not list(tmp_path.glob(".zlaunch-image-*"))


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
    assert image.repository_digest("docker", name) == found


def test_the_ending_of_an_archive_decides_its_format():
    assert image.archive_of(Path("/s/zl.tar")).load
    assert not image.archive_of(Path("/s/zl.sif")).load
    with pytest.raises(UsageError, match="the ending decides"):
        image.archive_of(Path("/s/zl.zip"))


def test_the_dockerfile_passes_hadolint():
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.fail("hadolint is not in the environment: make env")
    subprocess.run([hadolint, DOCKER / "Dockerfile"], check=True)


def test_every_ignored_rule_of_the_dockerfile_is_explained_above_it():
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    ignored = [index for index, line in enumerate(lines) if "hadolint ignore" in line]
    assert ignored
    assert all(lines[index - 1].startswith("# ") and len(lines[index - 1]) > 30 for index in ignored)


def test_the_dockerfile_builds_with_the_old_builder_too():
    text = (DOCKER / "Dockerfile").read_text()
    assert not re.search(r"^# *syntax=|<<|^RUN --|COPY --(?!from)", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["build", "cpu", "cuda", "dev"])
def test_every_locked_package_has_a_version_and_hashes(name):
    text = (DOCKER / "requirements" / f"{name}.txt").read_text()
    entries = re.split(r"\n(?=[a-z0-9])", text.replace("\\\n", " "))
    packages = [entry for entry in entries if not entry.startswith("#")]
    assert packages
    assert all(re.match(r"[a-z0-9_.-]+==\S+", entry) and "--hash=sha256:" in entry for entry in packages)


def versions(name: str) -> dict[str, str]:
    """{package and its condition: version} of a lock."""
    found = {}
    for line in (DOCKER / "requirements" / f"{name}.txt").read_text().splitlines():
        match = re.match(r"([a-z0-9_.-]+)==(\S+)(.*?)\\?$", line)
        if match:
            found[match[1] + match[3].rstrip()] = match[2]
    return found


@pytest.mark.parametrize("name", ["build", "cpu", "dev"])
def test_all_locks_agree_on_versions(name):
    cuda = versions("cuda")
    own = versions(name)
    assert {key: own[key] for key in own.keys() & cuda.keys()} == {key: cuda[key] for key in own.keys() & cuda.keys()}


def test_the_cuda_lock_holds_the_cuda_build_and_the_cpu_lock_none_of_it():
    assert {"torch", "triton", "nvidia-nccl-cu13"} <= versions("cuda").keys()
    assert not [package for package in versions("cpu") if package.startswith(("torch", "nvidia", "triton", "cuda"))]


def test_the_lock_holds_the_versions_that_were_tested_together():
    wanted = re.findall(r"^([a-z_]+)==([^\s;]+)", (DOCKER / "requirements/train.in").read_text(), re.MULTILINE)
    locked = {key.split(" ")[0]: version for key, version in versions("cuda").items() if "< '3.11'" not in key}
    assert len(wanted) > 8
    assert {name: locked[name.replace("_", "-")] for name, _ in wanted} == dict(wanted)


ASKED = image.Question("docker", "zl:1", ("docker", "image", "inspect"), {})


def host_image(stdout: str = "", code: int = 0) -> image.HostImage:
    return image.answer(ASKED, {"code": code, "said": stdout})


def test_hosts_with_another_image_under_the_same_name_are_told_apart_from_most():
    found = {0: host_image("sha256:aa\n"), 1: host_image("bb\n"), 2: host_image("sha256:aa\n")}
    assert image.different(found) == {1: "sha256:aa"}


def test_a_shared_registry_digest_makes_images_equal_whatever_ids_their_engines_gave():
    one, other = host_image("sha256:aa r/zl@sha256:dd\n"), host_image("sha256:bb mirror/zl@sha256:dd\n")
    assert image.different({0: one, 1: other}) == {}


def test_a_host_without_the_image_is_a_problem_and_no_difference():
    absent = host_image("Error: No such image: zl:1\n", code=1)
    assert "no image zl:1 here" in absent.problem
    assert "zlaunch image load" in absent.advice
    assert image.different({0: host_image("sha256:aa\n"), 1: absent}) == {}
    assert "docker is not installed" in host_image(code=127).problem
    assert "strange" in host_image("strange thing\n", code=3).problem


def test_hosts_are_asked_about_the_pinned_image_and_about_nothing_without_a_container(lock_file):
    image.write_lock(ImageLock().with_image("zl:cpu", LOCKED))
    asked = image.question(container(runtime="docker", image="zl:cpu"), "cpu")
    assert asked is not None
    assert (asked.argv[0], asked.image) == ("docker", "sha256:aa")
    assert image.question(container(), "cpu") is None


def test_the_far_end_says_what_its_own_engine_says(tmp_path, monkeypatch):
    fake_engine(tmp_path / "bin", "docker", 'echo "sha256:$WHICH r/zl@sha256:dd"', monkeypatch)
    asked = image.question(JobSpec(container=ContainerSpec(runtime="docker", image="zl:1"), env={"WHICH": "cc"}), "cpu")
    assert asked is not None
    said = farend.image(asked.argv, asked.image, dict(asked.environ))
    assert image.answer(asked, said) == image.HostImage("sha256:cc", frozenset({"sha256:dd"}))
    assert farend.image(["podman"], "zl:1", {"PATH": str(tmp_path)})["code"] == 127


def test_an_image_file_must_be_on_every_host_and_have_the_same_size(tmp_path):
    asked = image.question(container(runtime="apptainer", image=str(tmp_path / "zl.sif")), "cpu")
    assert asked is not None
    assert "no image" in image.answer(asked, farend.image([], asked.image, {})).problem
    (tmp_path / "zl.sif").write_bytes(b"12345")
    here = image.answer(asked, farend.image([], asked.image, {}))
    assert image.different({0: here, 1: here, 2: image.HostImage("6 bytes")}) == {2: "5 bytes"}

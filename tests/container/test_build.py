"""The image itself: what is in it, what is not, and how fast it follows a change of the project's own code."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from launcher import __version__
from launcher.images import builder, lock
from launcher.images.refusals import diagnosis
from tests.container.conftest import Engine, Zl, small_build, tiny_wheel

pytestmark = [pytest.mark.container, pytest.mark.timeout(1200)]


def inspect(engine: Engine, image: str, template: str) -> str:
    return engine("docker", "image", "inspect", "--format", template, image).strip()


def test_the_image_says_what_it_was_built_from_and_the_lock_pins_it(engine: Engine, image: str) -> None:
    labels = json.loads(inspect(engine, image, "{{json .Config.Labels}}"))
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["zlaunch.lock"] == "sha256:" + builder.lock_hash("cpu")
    locked = lock.read_lock(engine.lock).images[image]
    assert labels["org.opencontainers.image.revision"] == locked.revision
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|v.*", locked.revision)
    assert locked.id == inspect(engine, image, "{{.Id}}")
    assert (locked.variant, locked.base_image) == ("cpu", engine.docker.base_image)


def test_any_uid_runs_the_locked_packages_without_a_compiler(engine: Engine, image: str) -> None:
    code = (
        "import shutil, torch, deepspeed, unsloth, peft, os, pathlib, getpass\n"
        "pathlib.Path.home().joinpath('x').write_text('x')\n"
        "print(torch.__version__, deepspeed.__version__, unsloth.__version__, os.getuid(), getpass.getuser(),"
        " shutil.which('gcc') or shutil.which('cc'))"
    )
    output = engine("docker", "run", "--rm", "--network=none", "--user=4242:4243", image, "python3", "-c", code)
    assert output.splitlines()[-1] == "2.13.0+cpu 0.19.8 2026.10.9 4242 zlaunch None"


def test_the_image_runs_as_a_plain_user_by_default(engine: Engine, image: str) -> None:
    output = engine("docker", "run", "--rm", "--network=none", image, "sh", "-c", "id -u; zlaunch --version")
    user, *version = output.split()
    assert (user, version[:2]) == ("1000", ["zlaunch", __version__])
    assert re.fullmatch(r"\(revision [0-9a-f]{40}(-dirty)?\)", " ".join(version[2:]))


def test_the_image_has_the_interface_for_python(engine: Engine, image: str) -> None:
    code = "import zlaunch; print(zlaunch.Job(name='a').spec.name)"
    assert engine("docker", "run", "--rm", "--network=none", image, "python", "-c", code).strip() == "a"


def test_no_wheel_index_or_secret_is_left_in_the_image(engine: Engine, image: str) -> None:
    look = "find / -xdev ( -name *.whl -o -name pip.conf -o -name .netrc ) -not -path */ensurepip/*"
    output = engine("docker", "run", "--rm", "--network=none", "--user=0", image, *look.split())
    assert output == ""
    history = engine("docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert not re.search(r"https?://[^/\s]+@|token|password", history, re.IGNORECASE)


def test_a_change_of_the_projects_own_code_leaves_the_layers_of_the_packages(
    engine: Engine, image: str, wheels: Path
) -> None:
    with builder.build_context(wheels) as context:
        (context / "launcher/extra.py").write_text("x = 1\n")
        build = builder.Build("cpu", "zlaunch-test:changed", engine.docker.base_image, offline=True)
        started = time.monotonic()
        engine(*builder.build_argv(build, context, revision="another", lock="l"), DOCKER_BUILDKIT="1")
        assert time.monotonic() - started < 60
    before, after = (json.loads(inspect(engine, tag, "{{json .RootFS.Layers}}")) for tag in (image, build.tag))
    same = next(index for index, (one, other) in enumerate(zip(before, after, strict=True)) if one != other)
    sizes = engine("docker", "history", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", build.tag).splitlines()
    packages = next(line for line in sizes if "/opt/zlaunch/venv" in line and "COPY" in line)
    assert same >= 3
    assert int(packages.split()[0]) > 500_000_000


def test_the_old_builder_takes_the_dockerfile_too(engine: Engine, small_image: str) -> None:
    """With a set of two packages: what is tried is the builder, the packages are tried by the other tests."""
    code = "import tinylib, launcher; print(tinylib.answer, launcher.__version__)"
    output = engine("docker", "run", "--rm", "--network=none", small_image, "python3", "-c", code)
    assert output.split() == ["42", __version__]


def test_a_wheel_that_is_not_the_locked_one_fails_the_build(engine: Engine, tmp_path: Path) -> None:
    tiny_wheel(tmp_path, "tinylib", "1.0")
    with small_build(engine, tmp_path, "0" * 64) as argv:
        done = subprocess.run(
            argv, env={**engine.environ, "DOCKER_BUILDKIT": "1"}, capture_output=True, text=True, check=False
        )
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stdout + done.stderr


def test_a_saved_image_loads_as_the_same_image(zl: Zl, engine: Engine, tmp_path: Path) -> None:
    small = engine.docker.base_image
    before = inspect(engine, small, "{{.Id}}")
    archive = tmp_path / "base.tar"
    zl("image", "save", small, archive)
    engine("docker", "tag", small, "kept:1")
    zl("image", "load", archive)
    assert inspect(engine, small, "{{.Id}}") == before
    zl("image", "save", small, archive, code=2)  # never overwrites


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"DOCKER_HOST": "unix:///no/such/docker.sock"}, "docker is not running"),
        ({"PATH": "/nonexistent"}, "docker is not installed here"),
    ],
)
def test_an_unusable_engine_is_reported_before_anything_is_built(zl: Zl, environ: dict, words: str) -> None:
    output = zl("build", "--variant", "cpu", code=1, **environ)
    assert words in output
    assert "Traceback" not in output


def test_a_user_without_access_to_the_engine_gets_a_clear_error(engine: Engine) -> None:
    """The engine's own words, asked as another user."""
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    done = subprocess.run(
        [*as_nobody, "docker", "version"], env=engine.environ, capture_output=True, text=True, check=False
    )
    found = diagnosis(done.returncode, done.stderr, "docker", "")
    assert found is not None
    assert found[0] == "this user may not use docker"


def test_a_full_disk_is_reported_as_such(zl: Zl, engine: Engine, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", full], check=True)
    try:
        output = zl("image", "save", engine.docker.base_image, full / "base.tar", code=1)
    finally:
        subprocess.run(["umount", full], check=True)
    assert "no space left for docker's images" in output
    assert "Traceback" not in output


def test_an_absent_image_is_reported_before_anything_starts(zl: Zl) -> None:
    output = zl("local", "--smoke", "--device", "cpu", "--container", "docker", "--image", "nobody/nothing:1", code=1)
    assert "no image nobody/nothing:1 here" in output
    assert not (zl.runs.exists() and list(zl.runs.glob("*/nodes/*")))

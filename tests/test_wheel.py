"""The wheel, installed outside the checkout, works as the checkout does."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # The build backend is in the environment: nothing is fetched.
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A directory like site-packages, far from the checkout."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # -P: the working directory is not on the path; the dependencies come from this environment, zlaunch does not.
    environment = {**os.environ, "PYTHONPATH": str(installed), "ZLAUNCH_RUNS": str(cwd / "runs")}
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=environment, check=True, capture_output=True, text=True, timeout=120
    )


def test_the_wheel_holds_the_files_that_are_not_python(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "templates", "docker", "slurm"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert tracked
    assert {f"launcher/{name}" for name in tracked} <= names


def test_the_wheel_says_that_both_packages_are_typed(wheel):
    assert {"launcher/py.typed", "train/py.typed"} <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_nothing_but_the_two_packages(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"launcher", "train"}


def test_the_assets_of_an_installed_wheel_are_its_own(installed, tmp_path):
    code = (
        "from launcher.machine import installation\n"
        "print(*[installation.path(kind) for kind in ('templates', 'docker', 'slurm')], sep='\\n')"
    )
    found = run(installed, "-c", code, cwd=tmp_path).stdout.split()
    assert found == [str(installed / "launcher" / kind) for kind in ("templates", "docker", "slurm")]


def test_the_checkouts_assets_stand_beside_the_package():
    from launcher.machine import installation

    assert [installation.path("templates"), installation.path("docker")] == [ROOT / "templates", ROOT / "docker"]


def test_a_dry_run_from_the_wheel_writes_the_run_directory(installed, tmp_path):
    argv = ("-m", "launcher", "local", "--smoke", "--device", "cpu", "--procs", "1", "--dry-run")
    run(installed, *argv, cwd=tmp_path)
    (made,) = (tmp_path / "runs").iterdir()
    assert (made / "code/train/__main__.py").read_bytes() == (ROOT / "train/__main__.py").read_bytes()
    for file in (ROOT / "launcher/node/agent").glob("*.py"):
        assert (made / "code/node/agent" / file.name).read_bytes() == file.read_bytes()


def test_the_build_context_from_the_wheel_is_that_of_the_checkout(installed, tmp_path):
    code = (
        "from launcher.images import builder as image_build\n"
        "with image_build.build_context() as c:\n"
        "    print(*sorted(str(p.relative_to(c)) for p in c.rglob('*') if p.is_file()), sep='\\n')"
    )
    from_wheel = run(installed, "-c", code, cwd=tmp_path).stdout.split("\n")
    from_checkout = run(ROOT, "-c", code, cwd=tmp_path).stdout.split("\n")
    assert from_wheel == from_checkout
    assert "docker/Dockerfile" in from_wheel


def test_an_interpreter_without_the_extra_is_refused_before_anything_starts():
    from launcher.errors import TargetError
    from launcher.machine import facts

    facts.check_python(sys.executable, ("msgspec",))
    with pytest.raises(TargetError, match="no_such_package not installed") as caught:
        facts.check_python(sys.executable, ("msgspec", "no_such_package"))
    assert "pip install 'zlaunch[train]'" in str(caught.value.hint)

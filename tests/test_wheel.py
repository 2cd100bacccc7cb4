"""The wheel, installed outside the checkout, works as the checkout does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
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


def test_the_wheel_says_that_its_packages_are_typed(wheel):
    assert {"launcher/py.typed", "train/py.typed", "zlaunch/py.typed"} <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_speaks_chinese(installed, tmp_path):
    said = run(installed, "-c", "import os; os.environ['ZLAUNCH_LANG'] = 'zh'\n"
               "from launcher.machine.language.spoken import said, shown\n"
               "print(said('held-out records'), shown('no hosts are given'))", cwd=tmp_path).stdout  # fmt: skip
    assert said == "留出记录 没有给出主机\n"


def git(*arguments: str, cwd: Path = ROOT) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def copied(tmp_path) -> Path:
    """A small checkout of another repository, with what a build needs."""
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "launcher/__init__.py",
                 "launcher/machine/installation.py", "train/__init__.py", "zlaunch/__init__.py", "templates/node.sh.j2",
                 "docker/Dockerfile", "slurm/train.sbatch.j2"):  # fmt: skip
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


def committed(folder: Path, remote: str) -> str:
    git("init", "-q", cwd=folder)
    git("remote", "add", "origin", remote, cwd=folder)
    git("add", "-A", cwd=folder)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "m", cwd=folder)
    return git("rev-parse", "HEAD", cwd=folder)


def built(folder: Path, kind: str) -> Path:
    build = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder.parent / f"dist-{folder.name}"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    (made,) = (folder.parent / f"dist-{folder.name}").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def of_wheel(wheel: Path) -> tuple[str, list[str]]:
    """(revision, links) that a wheel carries."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        written = (
            archive.read("launcher/revision.txt").decode() if "launcher/revision.txt" in archive.namelist() else ""
        )
        lines = archive.read(metadata).decode().splitlines()
    return written.strip(), [line.partition(", ")[2] for line in lines if line.startswith("Project-URL: ")]


def test_the_installed_version_names_the_revision_of_its_source(installed, tmp_path):
    head = git("rev-parse", "HEAD")
    assert f"(revision {head}" in run(installed, "-m", "launcher", "--version", cwd=tmp_path).stdout
    assert f"(revision {head}" in run(ROOT, "-m", "launcher", "--version", cwd=tmp_path).stdout


def test_an_installation_inside_another_repository_is_not_of_its_revision(installed, tmp_path):
    inside = tmp_path / "project"
    shutil.copytree(installed, inside / "site")
    (inside / "site/launcher/revision.txt").unlink()
    committed(inside, "https://example.com/a/b")
    assert "(revision unknown)" in run(inside / "site", "-m", "launcher", "--version", cwd=tmp_path).stdout


def test_a_wheel_of_an_sdist_has_the_revision_and_links_of_the_checkout(copied, tmp_path):
    commit = committed(copied, "git@example.com:group/name.git")
    (copied / "README.md").write_text("changed")
    with tarfile.open(built(copied, "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    committed(tmp_path / "unpacked", "https://example.com/another/project")  # a repository around it says nothing
    revision, links = of_wheel(built(unpacked, "wheel"))
    assert revision == f"{commit}-dirty"
    assert links[:2] == ["https://example.com/group/name"] * 2


def test_a_wheel_from_a_folder_without_git_claims_no_revision_and_no_links(copied):
    assert of_wheel(built(copied, "wheel")) == ("", [])


@pytest.mark.parametrize(
    ("remote", "home"),
    [
        ("https://github.com/a/b.git", "https://github.com/a/b"),
        ("https://user:secret@github.com/a/b", "https://github.com/a/b"),
        ("ssh://git@gitlab.example.com/g/sub/b.git", "https://gitlab.example.com/g/sub/b"),
        ("git@github.com:a/b.git", "https://github.com/a/b"),
        ("/srv/git/b.git", None),
        ("../b", None),
        ("", None),
        ("file:///srv/git/b", None),
        ("host:b", None),
    ],
)
def test_links_are_those_of_the_remote_and_never_a_secret(remote, home):
    code = f"import hatch_build, json; print(json.dumps(hatch_build.links({remote!r})))"
    found = json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)
    assert found.get("Homepage") == home
    assert "secret" not in str(found)


def test_the_wheel_holds_nothing_but_its_packages(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"launcher", "train", "zlaunch"}


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


def test_the_python_interface_of_the_wheel_plans_a_job(installed, tmp_path):
    code = (
        "import zlaunch\n"
        "plan = zlaunch.plan(zlaunch.Job(model={'path': 'qwen3-8b'}), gpu='h100', gpus_per_node=8)\n"
        "print(zlaunch.__file__, plan.fits, plan.world_size)"
    )
    found = run(installed, "-c", code, cwd=tmp_path).stdout.split()
    assert found == [str(installed / "zlaunch/__init__.py"), "True", "8"]

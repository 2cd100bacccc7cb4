"""`image`: the project's real Dockerfile, built once on the tiny base with the CPU package set; `zl` runs in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.images import builder
from tests.testbed.bed import Docker

ROOT = Path(__file__).parents[2]
TAG = "zlaunch-test:cpu"
SMALL = "zlaunch-test:small"


@dataclass
class Engine:
    """A private engine, its environment, and where image.lock of these tests lies."""

    docker: Docker
    lock: Path

    @property
    def environ(self) -> dict[str, str]:
        # Debian's own docker client first: it has BuildKit without a plugin.
        path = f"/usr/bin:{os.environ['PATH']}"
        return {
            **os.environ, **self.docker.environment, "PATH": path, "ZLAUNCH_IMAGE_LOCK": str(self.lock),
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def __call__(self, *argv: object, check: bool = True, timeout: float = 120, **environ: str) -> str:
        """Standard output of a command that talks to this engine."""
        done = subprocess.run(
            list(map(str, argv)), env={**self.environ, **environ}, capture_output=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"{argv}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        return done.stdout

    def containers(self) -> list[str]:
        return self("docker", "ps", "--all", "--format", "{{.Names}}").split()


@pytest.fixture(scope="session")
def engine(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(docker, tmp_path_factory.mktemp("lock") / "image.lock")


@pytest.fixture(scope="session")
def wheels() -> Path:
    """What the image installs, fetched by this machine's own pip, once for each lock and version of Python."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "zlaunch-tests"
    version = "".join(map(str, sys.version_info[:2]))
    folder = cache / f"wheels-{builder.lock_hash('cpu')[:16]}-{version}"
    if folder.exists():
        return folder
    for other in cache.glob(f"wheels-*-{version}"):  # of an older lock: half a gigabyte each
        shutil.rmtree(other, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=cache, prefix=".fetch-"))
    try:
        fetch = ("sh", ROOT / "docker/fetch_wheels.sh", scratch, "cpu", sys.executable)
        subprocess.run(list(map(str, fetch)), check=True, timeout=600, stdin=subprocess.DEVNULL)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


@pytest.fixture(scope="session")
def image(engine: Engine, wheels: Path) -> str:
    """The image's tag. Minutes: every package of the CPU variant is installed, by hash and without a network."""
    build = (sys.executable, "-m", "launcher", "build", "--variant", "cpu", "--tag", TAG)
    base = ("--base-image", engine.docker.base_image, "--wheels", wheels)
    engine(*build, *base, timeout=900, DOCKER_BUILDKIT="1")
    return TAG


@pytest.fixture(scope="session")
def small_image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The real Dockerfile by the old builder, with a set of two packages: enough for what only starts programs."""
    wheels = tmp_path_factory.mktemp("small")
    for name, version in (("tinylib", "1.0"), ("torch", "2.13.0")):
        tiny_wheel(wheels, name, version)
    digest = hashlib.sha256((wheels / "tinylib-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    build = small_build(engine, wheels, digest)
    with build as argv:
        engine(*argv, timeout=300, DOCKER_BUILDKIT="0")
    return SMALL


def tiny_wheel(folder: Path, name: str, version: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        info = f"{name}-{version}.dist-info"
        wheel.writestr(f"{name}.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@contextlib.contextmanager
def small_build(engine: Engine, wheels: Path, digest: str) -> Iterator[tuple[str, ...]]:
    """The build command of a set that holds `tinylib` alone, locked by this hash."""
    with builder.build_context(wheels) as context:
        for lock in ("build", "cpu"):
            (context / f"docker/requirements/{lock}.txt").write_text(f"tinylib==1.0 --hash=sha256:{digest}\n")
        build = builder.Build("cpu", SMALL, engine.docker.base_image, offline=True)
        yield builder.build_argv(build, context, revision="r", lock="l")


class Zl:
    """Runs `zlaunch` as a user would: another process, a directory of its own."""

    def __init__(self, engine: Engine, home: Path) -> None:
        self.engine, self.home, self.runs = engine, home, home / "runs"
        self.environ = {**engine.environ, "ZLAUNCH_RUNS": str(self.runs)}

    def start(self, *words: object, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launcher", *map(str, words)],
            cwd=self.home,
            env={**self.environ, **environ},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def __call__(self, *words: object, code: int = 0, timeout: float = 240, **environ: str) -> str:
        """Output of a command that must end with this exit status."""
        process = self.start(*words, **environ)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{words} did not end:\n{process.communicate()[0]}") from None
        assert process.returncode == code, f"exit {process.returncode} of {words}:\n{output}"
        return output

    def result(self, *words: object, **options: Any) -> dict[str, Any]:
        """The JSON object that --json prints last."""
        result: dict[str, Any] = json.loads(self(words[0], "--json", *words[1:], **options).splitlines()[-1])
        return result


@pytest.fixture
def zl(engine: Engine, tmp_path: Path) -> Iterator[Zl]:
    tmp_path.chmod(0o755)
    yield Zl(engine, tmp_path)
    for name in engine.containers():  # what a failed test left must not fail the next one
        engine("docker", "rm", "--force", name)

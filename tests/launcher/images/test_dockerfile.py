"""docker/: the Dockerfile, the entrypoint and the locks of packages; built for real in tests/container."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.machine import installation
from tests.beds.image_bed import fake_engine

DOCKER = installation.path("docker")


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
            (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n')
            (tmp_path / name).chmod(0o755)
    environ = {"PATH": str(tmp_path), "OFFLINE": offline}
    output = subprocess.check_output(["/bin/sh", "-ec", step], text=True, env=environ)
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    installed = re.findall(r"install -y --no-install-recommends (.*)", calls)
    assert installed == ([asked] if asked else [])
    assert ("docker run --init" in output) == ("tini" not in has and not asked)


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

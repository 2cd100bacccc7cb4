"""Where the hub caches are, and how a run in a container gets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from launcher.backends.container_choice import choose_container
from launcher.job.spec import ContainerSpec, JobSpec, Model, SlurmSpec
from launcher.machine import facts, hub_places
from launcher.node.agent.in_container import place_container
from launcher.plan.resolve import plan
from tests.beds.plans import target
from train.config import Data

VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "MODELSCOPE_CACHE")


@pytest.fixture(autouse=True)
def no_cache_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ZLAUNCH_IMAGE_LOCK", str(tmp_path / "image.lock"))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that has every image."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin/docker").write_text("#!/bin/sh\necho sha256:aa\n")
    (tmp_path / "bin/docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HF_HOME": "/a/hf"},
        {"HF_HOME": "~/hf"},
        {"XDG_CACHE_HOME": "/x"},
        {"HF_HUB_CACHE": "/b/hub"},
        {"HF_HOME": "/a/hf", "HF_HUB_CACHE": "$HOME/hub", "HUGGINGFACE_HUB_CACHE": "/c"},
        {"HF_HOME": "/a/hf", "HUGGINGFACE_HUB_CACHE": "/c"},
    ],
)
def test_the_hub_cache_is_where_huggingface_hub_has_it(environ):
    pytest.importorskip("huggingface_hub")
    ask = "from huggingface_hub import constants as c; print(c.HF_HOME); print(c.HF_HUB_CACHE)"
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", ask], env={**clean, **environ}, check=True, capture_output=True, text=True
    )
    ours = [str(hub_places.hf_home(environ)), str(hub_places.hf_hub(environ))]
    assert ours == done.stdout.splitlines()


def test_a_models_config_is_read_from_the_hub_that_the_user_or_the_job_names(tmp_path, monkeypatch):
    for name, size in (("here", 1), ("job", 2)):
        folder = tmp_path / name / "models--Qwen--Qwen3-8B/snapshots/abc"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"hidden_size": size}))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "other"))
    assert facts.model_files("Qwen/Qwen3-8B", {}).config is None
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "here"))
    assert facts.model_files("Qwen/Qwen3-8B", {}).config == {"hidden_size": 1}
    assert facts.model_files("Qwen/Qwen3-8B", {"HF_HUB_CACHE": str(tmp_path / "job")}).config == {"hidden_size": 2}


def test_a_cache_that_holds_the_model_is_mounted_read_only(tmp_path, monkeypatch):
    docker(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    job = JobSpec(model=Model(path="Qwen/Qwen3-8B"), container=ContainerSpec(runtime="docker", image="i"))
    first = choose_container(job, "local", "cuda")
    (tmp_path / "hf/hub/models--Qwen--Qwen3-8B/snapshots").mkdir(parents=True)
    second = choose_container(job, "local", "cuda")
    assert first.cache_mounts == (f"{tmp_path}/hf:{tmp_path}/hf:rw",)
    assert second.cache_mounts == (f"{tmp_path}/hf:{tmp_path}/hf:ro",)
    assert second.cache_variables["HF_HOME"] == str(tmp_path / "hf")


def test_a_cache_that_the_job_names_is_mounted_on_every_backend():
    for backend in ("ssh", "slurm"):
        job = JobSpec(
            model=Model(path="Qwen/Qwen3-8B"),
            container=ContainerSpec(runtime="docker", image="i"),
            env={"HF_HOME": "/shared/hf"},
        )
        assert choose_container(job, backend, "cuda").cache_mounts == ("/shared/hf:/shared/hf:rw",)


def test_remote_hosts_mount_their_own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    job = JobSpec(model=Model(path="Qwen/Qwen3-8B"), container=ContainerSpec(runtime="docker", image="i"))
    for backend in ("ssh", "slurm"):
        chosen = choose_container(job, backend, "cuda")
        assert chosen.host_caches == (("HF_HOME", str(tmp_path / "hf")), ("HF_HUB_CACHE", ""))
        assert (chosen.cache_mounts, chosen.cache_variables) == ((), {})
    assert not (tmp_path / "hf").exists()


def test_under_pyxis_the_cache_of_a_shared_home_is_mounted_unless_behind_a_login_host(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/proc/nowhere")
    job = JobSpec(model=Model(path="Qwen/Qwen3-8B"), container=ContainerSpec(runtime="pyxis", image="i"))
    assert choose_container(job, "slurm", "cuda").cache_mounts == ("/proc/nowhere:/proc/nowhere:rw",)
    away = msgspec.structs.replace(job, slurm=SlurmSpec(login="there"))
    assert choose_container(away, "slurm", "cuda").cache_mounts == ()


def test_caches_for_hub_data_and_for_modelscope_are_writable(tmp_path, monkeypatch):
    docker(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    job = JobSpec(
        model=Model(path="q/m", source="modelscope"),
        data=Data(train="hub:a/b"),
        container=ContainerSpec(runtime="docker", image="i"),
    )
    chosen = choose_container(job, "local", "cuda")
    assert chosen.cache_mounts == tuple(f"{tmp_path}/{name}:{tmp_path}/{name}:rw" for name in ("hf", "ms"))
    assert chosen.cache_variables == {"HF_HOME": str(tmp_path / "hf"), "MODELSCOPE_CACHE": str(tmp_path / "ms")}


JOB = JobSpec(model=Model(path="Qwen/Qwen3-8B"), container=ContainerSpec(runtime="docker", image="i"))


def test_a_moved_hub_cache_is_mounted_beside_the_home_and_named_inside(tmp_path, monkeypatch):
    docker(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    first = choose_container(JOB, "local", "cuda")
    (tmp_path / "hub/models--Qwen--Qwen3-8B/snapshots").mkdir(parents=True)
    second = choose_container(JOB, "local", "cuda")
    for chosen, mode in ((first, "rw"), (second, "ro")):
        assert chosen.cache_mounts == tuple(f"{tmp_path}/{name}:{tmp_path}/{name}:{mode}" for name in ("hf", "hub"))
        assert chosen.cache_variables == {
            name: str(tmp_path / place) for name, place in (("HF_HOME", "hf"), ("HF_HUB_CACHE", "hub"))
        }


def test_a_hub_cache_inside_a_mounted_directory_is_only_named(tmp_path, monkeypatch):
    docker(tmp_path, monkeypatch)
    for place in ("hf", "hf/models"):
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / place))
        chosen = choose_container(JOB, "local", "cuda")
        assert chosen.cache_mounts == (f"{tmp_path}/hf:{tmp_path}/hf:rw",)
        assert chosen.cache_variables["HF_HUB_CACHE"] == str(tmp_path / place)


def test_a_hub_that_the_job_names_is_mounted_on_every_backend():
    job = msgspec.structs.replace(JOB, env={"HF_HUB_CACHE": "/shared/hub"})
    for backend in ("ssh", "slurm"):
        assert choose_container(job, backend, "cuda").cache_mounts == ("/shared/hub:/shared/hub:rw",)


def test_the_hub_cache_of_this_machine_does_not_replace_the_home_of_a_job(monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/ours/hub")
    elsewhere = choose_container(JOB, "ssh", "cuda")
    assert elsewhere.host_caches[1] == ("HF_HUB_CACHE", "/ours/hub")
    named = choose_container(msgspec.structs.replace(JOB, env={"HF_HOME": "/shared/hf"}), "ssh", "cuda")
    assert named.host_caches == (("HF_HUB_CACHE", ""),)


@pytest.mark.parametrize("same", [False, True])
def test_a_host_mounts_its_own_hub_cache_and_no_directory_twice(tmp_path, monkeypatch, same):
    chosen = choose_container(JOB, "ssh", "cuda")
    made = msgspec.to_builtins(plan(JOB, target(backend="ssh"), run_id="r", container=chosen).launch.container)
    home, hub = tmp_path / "hf", tmp_path / ("hf" if same else "hub")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    argv = place_container(made, tmp_path / "run", 0)["argv"]
    assert f"--env=HF_HOME={home}" in argv
    assert f"--env=HF_HUB_CACHE={hub}" in argv
    for place in {home, hub}:
        assert argv.count(f'--mount=type=bind,"source={place}","target={place}"') == 1

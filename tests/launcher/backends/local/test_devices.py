"""What `zlaunch local` makes of a job and of what this machine has."""

from __future__ import annotations

import pytest

from launcher.backends.local.devices import assumed_target, local_ranks, local_target, refuse_procs_on_gpus
from launcher.errors import TargetError, UsageError
from launcher.job.spec import JobSpec, LocalSpec
from launcher.machine import facts
from tests.beds.plans import target


@pytest.mark.parametrize(
    ("device", "local", "gpus", "expected"),
    [
        ("auto", LocalSpec(), 0, ("cpu", 1)),
        ("auto", LocalSpec(procs=2), 0, ("cpu", 2)),
        ("auto", LocalSpec(), 4, ("cuda", 4)),
        ("auto", LocalSpec(gpus=2), 4, ("cuda", 2)),
        ("auto", LocalSpec(procs=2), 4, ("cuda", 4)),  # a job's number of CPU ranks waits for a machine without GPUs
        ("cpu", LocalSpec(procs=2), 4, ("cpu", 2)),
    ],
)
def test_ranks_of_a_machine(device, local, gpus, expected):
    assert local_ranks(JobSpec(device=device, local=local), gpus) == expected


@pytest.mark.parametrize(
    ("device", "local", "gpus", "error"),
    [
        ("cpu", LocalSpec(gpus=1), 4, UsageError),
        ("auto", LocalSpec(gpus=8), 4, TargetError),
        ("cuda", LocalSpec(), 0, TargetError),
    ],
)
def test_what_a_machine_has_not_is_refused(device, local, gpus, error):
    with pytest.raises(error):
        local_ranks(JobSpec(device=device, local=local), gpus)


def test_procs_on_the_command_line_are_refused_where_they_would_count_for_nothing():
    refuse_procs_on_gpus(2, target(device="cpu"))
    refuse_procs_on_gpus(None, target(device="cuda"))
    with pytest.raises(UsageError, match="counts ranks on a CPU"):
        refuse_procs_on_gpus(2, target(device="cuda"))


SMI = """0, GPU-aa11, NVIDIA H100, 81559, 9.0
1, GPU-bb22, NVIDIA H100, 81559, 9.0"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Make the machine's nvidia-smi a script."""

    def make(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return make


def test_gpus_are_those_that_cuda_would_see(nvidia_smi, monkeypatch):
    nvidia_smi(f"cat <<'END'\n{SMI}\nEND")
    assert [gpu.index for gpu in facts.local_gpus()] == [0, 1]
    assert local_target(JobSpec(env={"CUDA_VISIBLE_DEVICES": "1"})).hosts == (("localhost", 1),)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert [gpu.index for gpu in facts.local_gpus()] == [1, 0]


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_broken_driver_never_means_training_on_the_cpu(nvidia_smi, device):
    nvidia_smi("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    with pytest.raises(TargetError, match="Driver/library version mismatch") as caught:
        local_target(JobSpec(device=device))
    assert "--device cpu" in caught.value.hint
    assert local_target(JobSpec(device="cpu")).device == "cpu"
    assert assumed_target(JobSpec(device=device)).device == "cuda"  # records are checked for the shape of the batch


def test_memory_that_is_not_reported_is_reported_and_not_taken_for_zero(nvidia_smi):
    nvidia_smi("echo '0, GPU-1, NVIDIA GB10, [N/A], 12.1, 580.95'")
    target = local_target(JobSpec())
    assert (target.device, target.gpu_memory_bytes) == ("cuda", 0)
    assert target.notes == ("the driver does not report how much memory NVIDIA GB10 has",)


def test_why_fewer_gpus_are_visible_than_asked_for_is_reported(nvidia_smi, monkeypatch):
    nvidia_smi(f"cat <<'END'\n{SMI}\nEND")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,5")
    with pytest.raises(TargetError, match=r"2 GPUs requested, 1 found.*5 stands for no GPU here"):
        local_target(JobSpec(local=LocalSpec(gpus=2)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(TargetError, match="CUDA_VISIBLE_DEVICES=-1 hides all GPUs"):
        local_target(JobSpec(device="cuda"))

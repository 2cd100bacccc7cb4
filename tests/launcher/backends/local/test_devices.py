"""What `zlaunch local` makes of a job and of what this machine has."""

from __future__ import annotations

import pytest

from launcher.backends.local.devices import local_ranks, refuse_procs_on_gpus
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


@pytest.mark.parametrize(
    ("visible", "seen"),
    [("0", [0]), ("1,0", [1, 0]), ("0,", [0]), ("0,-1,1", [0]), (",1", []), ("GPU-bb", [1]), ("7,1", [])],
)
def test_gpus_are_those_that_cuda_would_see(tmp_path, monkeypatch, visible, seen):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{SMI}\nEND\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.index for gpu in facts.local_gpus()] == seen

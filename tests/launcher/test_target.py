"""What `zlaunch local` makes of a job and of what this machine has."""

from __future__ import annotations

import pytest

from launcher import submit
from launcher.errors import TargetError, UsageError
from launcher.spec import JobSpec, LocalSpec
from tests.launcher.plans import target


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
    assert submit.local_ranks(JobSpec(device=device, local=local), gpus) == expected


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
        submit.local_ranks(JobSpec(device=device, local=local), gpus)


def test_procs_on_the_command_line_are_refused_where_they_would_count_for_nothing():
    submit.refuse_procs_on_gpus(2, target(device="cpu"))
    submit.refuse_procs_on_gpus(None, target(device="cuda"))
    with pytest.raises(UsageError, match="counts ranks on a CPU"):
        submit.refuse_procs_on_gpus(2, target(device="cuda"))

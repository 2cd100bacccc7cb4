"""What Slurm's tools print of partitions, their limits and their GPUs."""

import pytest

from launcher.backends.slurm.partitions import Partition, gpus_of, parse_partitions
from launcher.plan.batch_job import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("2:30", 150), ("04:00:00", 14400), ("1-0", 86400), ("2-03:04", 183840), ("1-00:00:01", 86401)],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["UNLIMITED", "", "4h", "1:2:3:4", "-5"])
def test_what_is_no_limit_is_none(text: str) -> None:
    assert seconds_of(text) is None


def test_gpus_are_counted_by_type_and_without_their_sockets() -> None:
    texts = ("gpu:h200:8(S:0-1)", "gpu:2,nvme:1", "gpu:a30:4,gpu:t4:1", "(null)", "gpu", "gpu:1g.10gb:7(IDX:0,2-3)")
    assert [gpus_of(text) for text in texts] == [
        {"h200": 8}, {"": 2}, {"a30": 4, "t4": 1}, {}, {"": 1}, {"1g.10gb": 7},
    ]  # fmt: skip


def test_partitions_hold_their_limits_and_the_gpus_of_their_best_node() -> None:
    text = (
        "PartitionName=gpu Default=YES DefaultTime=00:05:00 MaxNodes=UNLIMITED MaxTime=01:00:00 State=UP TotalNodes=4 "
        "MaxCPUsPerNode=UNLIMITED JobDefaults=DefCpuPerGPU=6,DefMemPerGPU=100\n"
        "PartitionName=big Default=NO DefaultTime=NONE MaxNodes=2 MaxTime=UNLIMITED State=DOWN TotalNodes=9 "
        "MaxCPUsPerNode=48 JobDefaults=(null)\n"
    )
    found = parse_partitions(text, {"gpu": 8})
    assert found["gpu"] == Partition("gpu", True, True, 3600.0, 300.0, 4, 8, 6)
    assert found["big"] == Partition("big", False, False, None, None, 2, 0, None, 48)

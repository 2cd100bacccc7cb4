"""What steps wait for between hosts: the arithmetic against measured steps, the job's own rate, and warnings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.job.load import convert
from launcher.job.network_rate import bytes_per_second
from launcher.job.spec import JobSpec
from launcher.machine import measured_networks
from launcher.machine.language.bilingual import in_chinese
from launcher.plan.between_hosts import Traffic, traffic_of
from launcher.plan.cost import relative_speed
from launcher.plan.fastest import choose
from launcher.plan.resolve import plan
from launcher.plan.situation import Situation, model_of
from launcher.plan.types import Target
from train.config import Lora, Model
from train.memory import GIB, SHAPES, MemoryCase, tokens_per_second

MEASURED_RATE = 8.96 * GIB
"""Bytes per second of an all-reduce between the two hosts, four threads with four sockets each (docs/nodes.md)."""
TOKENS_OF_A_RECORD = 173
ROWS = (
    # shape, tokens/s of one host, records per step on both hosts, stage, recomputing, tokens/s of both (docs/nodes.md)
    ("llama3.2-1b", 99_844, 192, 0, False, 189_954),
    ("llama3.2-1b", 99_844, 192, 2, False, 169_974),
    ("llama3.2-1b", 99_844, 192, 3, False, 132_363),
    ("llama3-8b", 18_362, 192, 0, False, 34_961),
    ("llama3-8b", 18_362, 192, 2, False, 35_131),
    ("llama3-8b", 18_362, 192, 3, True, 19_607),
)
FOUR_GPUS = (
    # stage, recomputing, ranks that share the weights (None: all), tokens/s of two hosts with two H100s each
    (0, False, None, 69_029),
    (2, False, None, 67_238),
    (3, False, 2, 64_626),
    (3, True, None, 31_005),
)


@pytest.mark.parametrize(("shape", "alone", "records", "stage", "recomputing", "measured"), ROWS)
def test_a_step_is_predicted_within_15_percent_of_what_two_hosts_were_measured_at(
    shape: str, alone: int, records: int, stage: int, recomputing: bool, measured: int
) -> None:
    tokens = records * TOKENS_OF_A_RECORD
    case = MemoryCase(
        tokens=tokens // 2, sequence=512, engine="fused", lora_r=16, zero_stage=stage, world_size=2,
        checkpointing=recomputing,
    )  # fmt: skip
    seconds = predicted(shape, case, alone)
    assert abs(seconds / (tokens / measured) - 1) < 0.15, f"{seconds:.3f} s, measured {tokens / measured:.3f} s"


def predicted(shape: str, case: MemoryCase, alone: int) -> float:
    """Seconds of a step in one pass, by the measured rate of one GPU."""
    plain = replace(case, zero_stage=0, checkpointing=False)
    recompute = tokens_per_second(SHAPES[shape], plain, 1e15) / tokens_per_second(SHAPES[shape], case, 1e15)
    work = case.tokens / alone * recompute / relative_speed("fused", case.zero_stage)
    return work + traffic_of(SHAPES[shape], case, hosts=2, passes=1).waits(work, MEASURED_RATE)


@pytest.mark.parametrize(("stage", "recomputing", "sharers", "measured"), FOUR_GPUS)
def test_a_step_of_two_hosts_with_two_gpus_each_is_predicted_within_15_percent(
    stage: int, recomputing: bool, sharers: int | None, measured: int
) -> None:
    tokens = 78_025  # of a step, 28 November 2026
    case = MemoryCase(
        tokens=tokens // 4, sequence=512, engine="fused", lora_r=16, zero_stage=stage, world_size=4,
        weight_ranks=sharers, checkpointing=recomputing,
    )  # fmt: skip
    seconds = predicted("llama3-8b", case, 17_944)
    assert abs(seconds / (tokens / measured) - 1) < 0.15, f"{seconds:.3f} s, measured {tokens / measured:.3f} s"


def test_the_longer_of_work_and_gathering_hides_most_of_the_shorter() -> None:
    assert Traffic(weights=10.0).waits(1.0, 10.0) == pytest.approx(0.25)
    assert Traffic(weights=40.0).waits(1.0, 10.0) == pytest.approx(3.25)
    assert Traffic(weights=1.0).waits(1.0, 10.0) == pytest.approx(0.025)
    assert Traffic(gradients=5.0).waits(1.0, 10.0) == pytest.approx(0.5)


def test_one_host_sends_nothing() -> None:
    case = MemoryCase(tokens=1, sequence=1, engine="fused", zero_stage=3, world_size=8)
    assert traffic_of(SHAPES["llama3-8b"], case, hosts=1, passes=3).total == 0


@pytest.mark.parametrize(
    ("text", "rate"),
    [("25Gb", 3.125e9), ("25 Gb/s", 3.125e9), ("25Gbps", 3.125e9), ("25Gbit/s", 3.125e9), ("3.1GB", 3.1e9),
     ("8.96 GiB/s", 8.96 * GIB), ("100Mb", 12.5e6), (".5TB", 5e11), ("1GBps", 1e9), ("2 Gbits", 2.5e8)],
)  # fmt: skip
def test_rates_are_read_as_people_write_them(text: str, rate: float) -> None:
    assert bytes_per_second(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["25", "fast", "0Gb", "-1Gb", "25g", "", "25 GX", "1e3Gb"])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpecError) as refused:
        convert({"network": text}, where="job.yaml")
    assert "network" in str(refused.value)
    assert "25Gb" in str(refused.value.hint)


def target(hosts: int = 2, network: float | None = None) -> Target:
    return Target(
        backend="ssh", device="cuda", hosts=tuple((f"h{n}", 1) for n in range(hosts)), python="p", master_port=1,
        control_port=2, token="t", gpu_name="NVIDIA H100 80GB HBM3", gpu_memory_bytes=80 * GIB, network=network,
    )  # fmt: skip


def job(**values: object) -> JobSpec:
    return JobSpec(model=Model(path="llama3-8b"), lora=Lora(r=16)).with_values(values)


def warnings(spec: JobSpec, there: Target) -> list[str]:
    return [note for note in plan(spec, there, run_id="r").notes if "between hosts" in note]


def test_a_stage_that_the_network_makes_slow_is_told_before_the_run_starts() -> None:
    (told,) = warnings(job(**{"train.zero_stage": 3, "network": "10Gb"}), target())
    assert told.startswith("train.zero_stage: ZeRO-3 sends 14.1 GB per step between hosts: ")
    assert "times slower than ZeRO-2 here, at 10 Gb/s" in told
    assert "比 ZeRO-2 慢" in in_chinese(told.partition(": ")[2])
    assert warnings(job(**{"train.zero_stage": 3}), target(hosts=1)) == []
    assert warnings(job(), target()) == []
    (slow,) = warnings(job(network="100Mb"), target())
    assert "waits" in slow
    assert "秒在等待" in in_chinese(slow.partition(": ")[2])


def test_the_jobs_own_rate_counts_before_the_measured_one_and_that_before_the_usual() -> None:
    def speed(spec: JobSpec, there: Target) -> float:
        return choose(spec, model_of(spec.model.path, None), Situation.at(there))[0].cost.tokens_per_second

    fixed = {"train.zero_stage": 3}
    usual, measured = speed(job(**fixed), target()), speed(job(**fixed), target(network=1e9))
    assert measured < usual
    assert speed(job(**fixed, network="25Gb"), target(network=1e9)) == pytest.approx(usual)


def test_a_measurement_is_found_again_for_the_same_hosts_and_some_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert measured_networks.known(["a", "b"]) is None
    measured_networks.remember(["a", "b", "c"], 1e9)
    assert measured_networks.known(["c", "a"]) == 1e9
    measured_networks.remember(["b", "a"], 2e9)
    assert measured_networks.known(["a", "b"]) == 2e9
    assert measured_networks.known(["a", "d"]) is None
    assert measured_networks.known(["a"]) is None
    measured_networks.remember(measured_networks.of_partition("gpu"), 3e9)
    assert measured_networks.known(measured_networks.of_partition("gpu")) == 3e9
    assert measured_networks.known(measured_networks.of_partition(None)) == 3e9
    assert measured_networks.known(measured_networks.of_partition("other")) is None
    for damaged in ("", "[1]", '[{"hosts": ["a", "b"]}]', json.dumps([{"hosts": ["a", "b"], "bytes_per_second": "x"}])):
        measured_networks.file().write_text(damaged)
        assert measured_networks.known(["a", "b"]) is None

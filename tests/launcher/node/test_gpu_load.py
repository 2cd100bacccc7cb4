"""The load of GPUs in a node's record. No GPU is needed: NVML answers through a source of the test."""

from __future__ import annotations

import ctypes.util
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.node import gpu_load
from launcher.node.gpu_load import GpuLoad, Nvml, NvmlError
from tests.beds.agent_bed import bed, wait_for

ROW = {"local_rank": 0, "use": 93, "used_bytes": 5 << 30, "total_bytes": 80 << 30}


class Source:
    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def sample(self) -> list[dict[str, Any]]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return list(answer)


def test_samples_are_in_the_record_until_nvml_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_load, "EVERY", 0.05)
    load = GpuLoad(lambda: Source([ROW], [ROW], NvmlError("nvmlDeviceGetMemoryInfo answers with error 15")))
    wait_for(lambda: load.fields() == {"gpus": [ROW], "gpu_trouble": None})
    failed = {"gpus": [], "gpu_trouble": "nvmlDeviceGetMemoryInfo answers with error 15"}
    wait_for(lambda: load.fields() == failed)


def test_a_driver_that_hangs_leaves_no_old_sample_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_load, "STALE", 0.1)

    def hang() -> None:
        time.sleep(600)

    load = GpuLoad(hang)
    assert load.fields() == {"gpus": [], "gpu_trouble": None}
    wait_for(lambda: "the driver has not answered" in (load.fields()["gpu_trouble"] or ""))


def test_without_nvml_the_reason_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_load, "LIBRARIES", ("libno-such-nvml.so.1",))
    with pytest.raises(NvmlError, match="no NVML on this host: libno-such-nvml"):
        Nvml(None, 1)


@pytest.mark.skipif(ctypes.util.find_library("nvidia-ml") is not None, reason="this machine has NVML")
def test_an_agent_for_gpus_records_why_their_use_is_not_known_and_one_for_cpus_nothing(tmp_path: Path) -> None:
    with bed(tmp_path) as make:
        run = make("sleep 1", device="cuda")
        assert run.go() == 0
        assert run.record()["gpu_trouble"].startswith("no NVML on this host")
        assert run.record()["state"] == "SUCCEEDED"
    with bed(tmp_path) as make:
        run = make("true")
        assert run.go() == 0
        assert "gpus" not in run.record()


NVML = r"""
#include <string.h>
typedef struct { unsigned gpu, memory; } use_t;
typedef struct { unsigned long long total, free, used; } memory_t;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(index + 1ul); return index < 3 ? 0 : 2; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = (void *)2; return strcmp(uuid, "GPU-b") ? 6 : 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    *memory = (memory_t){80ull << 30, 0, (unsigned long)device << 30}; return 0; }
int nvmlDeviceGetUtilizationRates(void *device, use_t *use) {
    *use = (use_t){10 * (unsigned long)device, 5}; return device == (void *)3 ? 3 : 0; }
"""
"""NVML's own signatures (nvml.h), with three GPUs of which the last has no utilization, as a MIG slice."""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_nvml_is_called_as_its_header_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvml.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "nvml.c")], check=True)
    monkeypatch.setattr(gpu_load, "LIBRARIES", (str(library),))

    def rows(visible: str | None, ranks: int) -> list[tuple[int | None, int]]:
        return [(row["use"], row["used_bytes"] >> 30) for row in Nvml(visible, ranks).sample()]

    assert rows(None, 8) == [(10, 1), (20, 2), (None, 3)]
    assert rows(None, 1) == [(10, 1)]
    assert rows("2, GPU-b", 2) == [(None, 3), (20, 2)]
    assert rows("", 2) == []
    for name in ("3", "GPU-c", "-1"):
        with pytest.raises(NvmlError, match="answers with error"):
            Nvml(name, 1)

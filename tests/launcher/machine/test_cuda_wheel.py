"""Which driver and cards a torch needs, against the locked environment."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from launcher.machine.cuda_wheel import LOCKED, cpu_build, cuda_of, problems
from launcher.machine.facts import Gpu

V100, H100, B200 = Gpu(0, "Tesla V100", 1, 7.0), Gpu(0, "NVIDIA H100", 1, 9.0), Gpu(0, "NVIDIA B200", 1, 10.0)
P40, UNKNOWN = Gpu(0, "Tesla P40", 1, 6.1), Gpu(0, "NVIDIA X", 1, None)


REQUIREMENTS = Path(__file__).parents[3] / "docker/requirements"


def locked(variant: str) -> set[tuple[str, str]]:
    lock = (REQUIREMENTS / f"{variant}.txt").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))


@pytest.mark.parametrize("variant", LOCKED)
def test_the_locked_cuda_is_that_of_the_lock(variant: str) -> None:
    assert cuda_of(dict(locked(variant))) == LOCKED[variant]


def test_the_locks_for_cuda_12_and_13_differ_in_torch_and_its_own_packages_only() -> None:
    differing = {name for name, _ in locked("cuda") ^ locked("cuda12")}
    assert {name for name in differing if not name.startswith(("nvidia-", "cuda-"))} == {"torch", "triton"}


@pytest.mark.parametrize(
    ("gpus", "variant"),
    [
        ("580.65.06, 9.0", "cuda"),
        ("575.57.08, 9.0", "cuda12"),
        ("595.10, 7.0", "cuda12"),  # Volta, which CUDA 13 dropped
        ("580.1, 9.0\n580.1, 7.0", "cuda12"),
        ("590.10, [N/A]", "cuda"),
        ("No devices were found", "cpu"),
        ("", "cpu"),
    ],
)
def test_the_environment_is_chosen_by_driver_and_cards(tmp_path: Path, gpus: str, variant: str) -> None:
    script = (REQUIREMENTS.parent / "install_env.sh").read_text(encoding="utf-8")
    functions = "".join(re.findall(r"^(?:gpus|find_variant)\(\) \{\n.*?^\}\n", script, re.MULTILINE | re.DOTALL))
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ncat <<'END'\n{gpus}\nEND\n")
    smi.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    chosen = subprocess.run(["sh", "-euc", functions + "find_variant"], env=environ, capture_output=True, text=True)
    assert chosen.stdout.strip() == variant, chosen.stderr


@pytest.mark.parametrize(
    ("torch", "driver", "gpu", "words"),
    [
        ("2.13.0+cu130", "580.65.06", H100, []),
        ("2.13.0+cu130", "590.1", B200, []),
        ("2.13.0+cu130", "575.57.08", H100, ["driver 575.57.08 is too old for CUDA 13.0", "580 or newer", "whl/cu128"]),
        ("2.13.0+cu130", "580.65.06", V100, ["Tesla V100 (compute capability 7.0) is too old", "7.5", "whl/cu128"]),
        ("2.13.0+cu130", "535.1", P40, ["driver 535.1 is too old", "Tesla P40", "whl/cu126"]),
        ("2.13.0", "535.1", H100, ["driver 535.1 is too old for CUDA 13.0"]),  # the lock's CUDA, where torch says none
        ("2.7.0+cu126", "535.1", V100, []),
        ("2.7.0+cu126", "570.1", B200, ["NVIDIA B200", "too new for torch of CUDA 12.6", "whl/cu128"]),
        ("2.7.0+cu126", "470.1", H100, ["525 or newer", "whl/cu118"]),
        ("2.13.0+cu130", "470.1", B200, ["update the driver"]),
        ("2.13.0+cu130", "[N/A]", UNKNOWN, []),
        ("3.0.0+cu140", "600.1", H100, []),
    ],
)
def test_what_does_not_fit_is_reported_with_the_remedy(torch: str, driver: str, gpu: Gpu, words: list[str]) -> None:
    reported = "; ".join(problems({"torch": torch}, driver, [gpu, gpu]))
    assert bool(reported) == bool(words)
    assert [word for word in words if word not in reported] == []


def test_a_build_for_cpus_is_reported() -> None:
    assert "build for CPUs: pip install torch" in cpu_build({"torch": "2.13.0+cpu"}, "580.1", [H100])
    assert cpu_build({"torch": "2.13.0+cpu"}, "535.1", [V100]).endswith("ZLAUNCH_VARIANT=cuda12 make env")
    assert cpu_build({"torch": "2.13.0+cpu"}, "535.1", [P40]).endswith("cu126")
    assert cpu_build({"torch": "2.13.0"}, "580.1", [H100]) == ""


def test_an_image_that_does_not_fit_is_answered_with_the_variant_that_does() -> None:
    assert problems({}, "535.1", [H100], in_image=True)[-1] == "zlaunch build --variant cuda12"
    assert problems({}, "580.1", [H100], in_image=True) == []

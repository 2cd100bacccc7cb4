"""Which driver and which GPUs an installed torch needs. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from launcher.machine.facts import Gpu

LOCKED = {"cuda": "13.0", "cuda12": "12.8"}
"""Variant of the locked environment and of the image (docker/requirements/VARIANT.txt) -> its CUDA, newest first."""
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Major version of CUDA -> of the driver (NVIDIA's table of minor version compatibility)."""
WHEELS = (((13, 0), 7.5, 99.0), ((12, 8), 7.0, 99.0), ((11, 8), 5.0, 10.0), ((0, 0), 3.5, 9.0))
"""(from this CUDA on, oldest compute capability in torch's wheels, first one that is too new). CUDA 13 dropped Maxwell,
Pascal and Volta; Blackwell came with 12.8, Hopper with 11.8."""
CUDA = ("nvidia-cuda-runtime-cu11", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime")
"""NVIDIA's packages of the CUDA runtime. CUDA 13 dropped the suffix. Wheels of torch bring one of them."""


def cuda_of(packages: Mapping[str, str]) -> str:
    """Return `13.0` from torch's local version tag (2.11.0+cu130), or from the runtime's package; empty: unknown."""
    tag = re.search(r"\+cu(\d+)(\d)(?!\d)", packages.get("torch", ""))
    if tag:
        return f"{tag[1]}.{tag[2]}"
    runtime = next((packages[name] for name in CUDA if name in packages), "")
    return ".".join(runtime.split(".")[:2])


def cpu_build(packages: Mapping[str, str], driver: str, gpus: Sequence[Gpu]) -> str:
    """Say that torch cannot use any GPU, and what to do; empty: nothing says so."""
    torch = packages.get("torch", "")
    return f"torch {torch} is a build for CPUs: {remedy(driver, gpus)}" if "+cpu" in torch else ""


def problems(packages: Mapping[str, str], driver: str, gpus: Sequence[Gpu], *, in_image: bool = False) -> list[str]:
    """Say why the installed torch cannot use these GPUs under this driver, and what to do; empty: it can.

    Without a torch that tells its CUDA, that of the newest locked environment counts.
    """
    cuda = cuda_of(packages) or LOCKED["cuda"]
    found = [_driver_problem(cuda, driver), *(_card_problem(cuda, gpu) for gpu in gpus)]
    told = list(dict.fromkeys(filter(None, found)))
    return [*told, remedy(driver, gpus, in_image=in_image)] if told else []


def remedy(driver: str, gpus: Sequence[Gpu], *, in_image: bool = False) -> str:
    """Name the newest image, or the newest locked environment and wheels, that fit driver and cards."""
    fitting = next((name for name, cuda in LOCKED.items() if _fits(cuda, driver, gpus)), None)
    if in_image and fitting:
        return f"zlaunch build --variant {fitting}"
    for cuda, index in (("13.0", "cu130"), ("12.8", "cu128"), ("12.6", "cu126"), ("11.8", "cu118")):
        if _fits(cuda, driver, gpus):
            pip = f"pip install torch --index-url https://download.pytorch.org/whl/{index}"
            return f"{pip}, or in a checkout: ZLAUNCH_VARIANT={fitting} make env" if fitting else pip
    return "no wheels of torch fit this driver and these cards: update the driver"


def _fits(cuda: str, driver: str, gpus: Sequence[Gpu]) -> bool:
    return not _driver_problem(cuda, driver) and not any(_card_problem(cuda, gpu) for gpu in gpus)


def _driver_problem(cuda: str, driver: str) -> str:
    version, oldest = re.match(r"\d+", driver), OLDEST_DRIVER.get(int(cuda.split(".")[0]), 0)
    if version is None or int(version[0]) >= oldest:
        return ""
    return (
        f"driver {driver} is too old for CUDA {cuda}: update it to {oldest} or newer, or install a torch that fits it"
    )


def _card_problem(cuda: str, gpu: Gpu) -> str:
    capability, version = gpu.compute_capability, tuple(int(part) for part in cuda.split("."))
    if capability is None:
        return ""
    _, oldest, too_new = next(row for row in WHEELS if version >= row[0])
    what = f"{gpu.name} (compute capability {capability})"
    if capability < oldest:
        return f"{what} is too old for torch of CUDA {cuda}, which begins with {oldest}: it needs older wheels"
    return f"{what} is too new for torch of CUDA {cuda}: it needs newer wheels" if capability >= too_new else ""

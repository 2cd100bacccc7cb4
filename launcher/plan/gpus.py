"""The table of GPUs: memory and rate of dense bfloat16 products, from data sheets unless measured."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from launcher.errors import SpecError

GIB = 2**30
SAME_SIZE = 0.15
"""By how much two figures for the memory of one GPU may differ: data sheets say more than nvidia-smi shows."""


@dataclass(frozen=True)
class GpuModel:
    key: str
    title: str
    memory_bytes: int
    """As nvidia-smi shows it, a little less than the data sheet says."""
    matrix_rate: float
    """FLOP/s of a large bfloat16 product, or float16 on older GPUs: measured, or four fifths of the data sheet."""
    compute_capability: float


def _gpu(key: str, title: str, gib: float, tflops: float, capability: float) -> GpuModel:
    return GpuModel(key, title, round(gib * GIB), tflops * 1e12, capability)


_TABLE = (
    _gpu("b200", "NVIDIA B200", 178.0, 1800, 10.0),
    _gpu("h200", "NVIDIA H200", 139.7, 790, 9.0),  # measured: 8192 x 8192 x 8192, random data
    _gpu("h100", "NVIDIA H100 80GB", 79.1, 790, 9.0),  # measured in the same way
    _gpu("h20", "NVIDIA H20", 95.0, 118, 9.0),
    _gpu("a100-80", "NVIDIA A100 80GB", 79.1, 250, 8.0),
    _gpu("a100-40", "NVIDIA A100 40GB", 39.4, 250, 8.0),
    _gpu("a800", "NVIDIA A800 80GB", 79.1, 250, 8.0),
    _gpu("a40", "NVIDIA A40", 44.4, 120, 8.6),
    _gpu("a10", "NVIDIA A10", 22.1, 100, 8.6),
    _gpu("l40s", "NVIDIA L40S", 44.5, 290, 8.9),
    _gpu("l4", "NVIDIA L4", 22.0, 97, 8.9),
    _gpu("5090", "NVIDIA GeForce RTX 5090", 31.4, 170, 12.0),
    _gpu("4090", "NVIDIA GeForce RTX 4090", 23.5, 132, 8.9),
    _gpu("3090", "NVIDIA GeForce RTX 3090", 23.6, 57, 8.6),
    _gpu("v100-32", "NVIDIA V100 32GB", 31.7, 90, 7.0),
    _gpu("v100-16", "NVIDIA V100 16GB", 15.8, 90, 7.0),
    _gpu("t4", "NVIDIA T4", 14.6, 45, 7.5),
)
GPUS: dict[str, GpuModel] = {gpu.key: gpu for gpu in _TABLE}

_ALIASES = {"a100": "a100-80", "rtx4090": "4090", "rtx3090": "3090", "rtx5090": "5090", "v100": "v100-16"}


def find(name: str, *, otherwise: str = "give --gpu-memory 24GiB") -> GpuModel:
    """The GPU that --gpu names. Raises SpecError naming the known ones."""
    key = name.lower().replace("_", "-").removeprefix("nvidia-").removesuffix("gb")
    key = _ALIASES.get(key, key)
    if key in GPUS:
        return GPUS[key]
    near = difflib.get_close_matches(key, GPUS, n=1, cutoff=0.5)
    hint = (f"did you mean {near[0]}? " if near else "") + f"known: {', '.join(GPUS)}; or {otherwise}"
    raise SpecError(f"--gpu {name!r}: not a GPU of the table", hint=hint, code="ZL-PLAN-04")


def parse_gpu(text: str) -> tuple[str, int]:
    """(name, bytes) of `h100` or `24GiB`. Raises SpecError."""
    if re.match(r"\s*\d+(\.\d+)?\s*[gm]i?b?\s*$", text.lower()):
        size = parse_memory(text)
        return f"a GPU of {size / GIB:.0f} GiB", size
    card = find(text, otherwise="say how much memory it has, 24GiB")
    return card.title, card.memory_bytes


def identify(title: str | None, memory_bytes: int | None) -> GpuModel | None:
    """The GPU of a name that nvidia-smi reports, such as `NVIDIA A100-SXM4-40GB`; None: it is not in the table."""
    words = re.split(r"[^a-z0-9]+", (title or "").lower())
    found = [gpu for gpu in _TABLE if gpu.key.split("-")[0] in words]
    if not found or memory_bytes is None:
        return found[0] if found else None
    return min(found, key=lambda gpu: abs(gpu.memory_bytes - memory_bytes))


def of_gres(kind: str, features: Iterable[str] = ()) -> GpuModel | None:
    """Return the GPU that a type of GRES names (`h200`, `nvidia_a100_80gb_pcie`), else the one that features name.

    None: none of the table, a part of one (MIG), or several that the names do not tell apart.
    """
    if kind:
        return _named(kind, [kind, *features])
    models = {model for feature in features if (model := _named(feature, [feature, *features]))}
    return models.pop() if len(models) == 1 else None


def _named(text: str, hints: Iterable[str]) -> GpuModel | None:
    """The GPU of one name. Its size may stand in `hints`, beside the GPU's name or the word gpu."""
    words = re.findall(r"[a-z]*\d+[a-z]*|[a-z]+", text.lower())
    if re.search(r"\d+g\.\d+gb|\bmig\b|laptop", text.lower()):
        return None
    keys = {gpu.key.split("-")[0] for gpu in _TABLE} & {word.removeprefix("rtx") for word in words}
    if len(keys) != 1:
        return None
    key = keys.pop()
    found = [gpu for gpu in _TABLE if gpu.key.split("-")[0] == key]
    beside = " ".join(hint.lower() for hint in hints if re.search(rf"{key}|gpu|vram", hint.lower()))
    sized = [gpu for gpu in found if re.search(rf"(?<!\d){gpu.key.rpartition('-')[2]}(g|gb|gib)?(?![\da-z])", beside)]
    sized = sized if len(found) > 1 else found
    sizes = {int(size) for size in re.findall(r"(?<!\d)(\d+)g(?:b|ib)?(?![\da-z])", text.lower())}
    if len(sized) != 1 or any(abs(size * GIB / sized[0].memory_bytes - 1) > SAME_SIZE for size in sizes):
        return None
    return sized[0]


def parse_memory(text: str) -> int:
    """`24GiB`, `24G`, `24000MB` -> bytes. Raises SpecError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(gib|g|gb|mib|m|mb)?\s*", text.lower())
    if not match:
        raise SpecError(f"--gpu-memory {text!r}: not a size", hint="for example 24GiB or 80GB", code="ZL-PLAN-04")
    unit = {"gib": GIB, "g": GIB, "gb": 10**9, "mib": 2**20, "m": 2**20, "mb": 10**6, None: GIB}[match[2]]
    size = float(match[1]) * unit
    if not 0 < size < 2**63:
        raise SpecError(f"--gpu-memory {text!r}: no GPU has that", hint="for example 24GiB or 80GB", code="ZL-PLAN-04")
    return round(size)

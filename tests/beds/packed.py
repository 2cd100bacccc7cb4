"""A tiny checkpoint with weights packed as GPTQ and AWQ have them, by this file's own arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GROUP = 32
_PLACES = {"gptq": (0, 1, 2, 3, 4, 5, 6, 7), "awq": (0, 2, 4, 6, 1, 3, 5, 7)}
"""Which of eight neighbors each four bits of a word hold."""
_SETTINGS: dict[str, dict[str, Any]] = {
    "gptq": {"desc_act": False, "sym": True, "checkpoint_format": "gptq"},
    "awq": {"zero_point": True, "version": "gemm"},
}


def packed(kind: str, source: Path, place: Path) -> None:
    """Write the checkpoint in `source` with its projections in 4 bits; and beside it, in `<place>-plain`, the same
    values as plain numbers."""
    import shutil

    from safetensors.torch import load_file, save_file

    plain = place.with_name(f"{place.name}-plain")
    packs: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if "_proj.weight" not in name:
            packs[name] = values[name] = weight
            continue
        made, values[name] = _four_bits(kind, weight)
        packs |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in made.items()}
    settings = {"quant_method": kind, "bits": 4, "group_size": GROUP, **_SETTINGS[kind]}
    for folder, weights, more in ((place, packs, {"quantization_config": settings}), (plain, values, {})):
        shutil.copytree(source, folder)
        save_file(
            {n: tensor.contiguous() for n, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
        )
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, **more}), encoding="utf-8")


def _four_bits(kind: str, weight: Any) -> tuple[dict[str, Any], Any]:
    """(the packed parts of a weight [out, in], the values that they stand for)."""
    import torch

    turned = weight.T.float()
    rows, columns = turned.shape
    scales = (turned.reshape(rows // GROUP, GROUP, columns).abs().amax(1) / 7).half()
    wide = scales.float().repeat_interleave(GROUP, 0)
    numbers = torch.clamp(torch.round(turned / wide) + 8, 0, 15).int()
    zero = 7 if kind == "gptq" else 8  # GPTQ's first format writes one less
    zeros = torch.full((rows // GROUP, columns), zero, dtype=torch.int32)
    made = {"scales": scales, "qzeros": _packed(zeros, kind)}
    if kind == "gptq":
        made["qweight"] = _packed(numbers.T.contiguous(), kind).T.contiguous()
        made["g_idx"] = torch.arange(rows, dtype=torch.int32) // GROUP
    else:
        made["qweight"] = _packed(numbers, kind)
    return made, ((numbers - 8) * wide).T.contiguous()


def _packed(numbers: Any, kind: str) -> Any:
    import torch

    words = torch.zeros(numbers.shape[0], numbers.shape[1] // 8, dtype=torch.int32)
    for bits, neighbor in enumerate(_PLACES[kind]):
        words |= numbers[:, neighbor::8] << (4 * bits)
    return words

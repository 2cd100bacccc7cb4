"""PiSSA and OLoRA. PiSSA (Meng et al. 2024, arXiv 2404.02948): LoRA that starts as the principal part of each weight.

PEFT subtracts s B0 A0 from the base weight W and trains B A from (B0, A0), so the base changes during training. What is
saved is a plain LoRA for the original W:

    W - s B0 A0 + s B A  =  W + s [B, -B0] [A; A0]          rank 2r, the same scale s

B0 A0 is unique: a truncated singular value decomposition. For OLoRA (Buyukakyuz 2024, arXiv 2406.01775) it is the first
columns of a QR decomposition times the first rows, whose signs cancel. So a run that is resumed on another machine
starts from the same base within rounding.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

State = dict[str, torch.Tensor]


def remember(model: Any) -> None:
    """Keep A0 and B0 of a PEFT model whose weights PiSSA or OLoRA has just split."""
    model.zlaunch_pissa = {
        name: parameter.detach().float().cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_" in name
    }


def as_plain_lora(model: Any, weights: State) -> tuple[State, Any]:
    """(weights by parameter name, LoraConfig) for the original base model; unchanged without PiSSA and OLoRA."""
    config = next(iter(model.peft_config.values()))
    start: State | None = getattr(model, "zlaunch_pissa", None)
    if start is None:
        return weights, config
    plain = dict(weights)
    for name, value in start.items():
        side = 0 if "lora_A" in name or "lora_embedding_A" in name else 1
        plain[name] = torch.cat([weights[name].cpu(), value if side == 0 else -value], dim=side)
    config = copy.deepcopy(config)
    config.init_lora_weights = True
    config.r *= 2
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    # The scale is alpha / r, or alpha / sqrt(r) with rsLoRA.
    factor = math.sqrt(2) if config.use_rslora else 2
    config.lora_alpha *= factor
    config.alpha_pattern = {name: alpha * factor for name, alpha in config.alpha_pattern.items()}
    return plain, config

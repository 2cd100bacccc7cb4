"""A run directory with an adapter of random weights, as training leaves it, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def adapter_run(run: Path, base: Path, *, quantization: str = "none", **lora: Any) -> Path:
    """Write `run` with an adapter for the model at `base`; `lora` goes to PEFT's LoraConfig."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train.model.base import register_types

    register_types(base)
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": "all-linear", **lora}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    model.save_pretrained(run / "adapter", save_embedding_layers=False)
    AutoTokenizer.from_pretrained(base).save_pretrained(run / "adapter")
    numbers = {"global_batch_size": 1, "micro_batch_size": 1, "gradient_accumulation_steps": 1}
    model_section = {"path": str(base), "quantization": quantization}
    job = {"run_id": "r", "device": "cpu", "model": model_section, "data": {}, "lora": {}, "train": numbers}
    (run / "train.json").write_text(json.dumps(job), encoding="utf-8")
    return run


def logits(model: Any) -> Any:
    """Logits [2, 32, vocabulary] of fixed tokens."""
    import torch

    ids = (torch.arange(1, 65) * 37 % model.get_input_embeddings().weight.shape[0]).reshape(2, 32)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()


def share(found: Any, wanted: Any) -> float:
    """The largest difference of logits, as a share of the largest one."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()

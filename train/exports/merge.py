"""Merge an adapter into its base model, and measure how far the merged model is from the trained one.

A QLoRA adapter was trained on 4-bit weights, so it is merged into what these weights stand for: the base is loaded as
it was in training, turned into 16 bits, and only then merged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from train.answers.trained import TrainedAdapter

Print = Callable[[str], None]


def merge(adapter: TrainedAdapter, tell: Print) -> Any:
    """The base model with the adapter added, in the dtype of the base (bfloat16 after QLoRA). Raises UserError."""
    import torch
    from peft import PeftModel

    quantization = adapter.config.model.quantization
    quantized = quantization != "none"
    dtype = torch.bfloat16 if quantized else "auto"
    base = adapter.load_base(dtype)
    tied = base.config.tie_word_embeddings
    adapted = PeftModel.from_pretrained(base, adapter.directory)
    trained = _logits(adapted)
    if quantized:
        del adapted, base  # two models might not fit into memory
        base = _dequantized(adapter.load_base(dtype))
        adapted = PeftModel.from_pretrained(base, adapter.directory)
    merged = adapted.merge_and_unload(safe_merge=True)
    if tied and merged.get_input_embeddings().weight is not merged.get_output_embeddings().weight:
        merged.config.tie_word_embeddings = False  # modules_to_save trained one of them in full
    difference = (trained - _logits(merged)).abs().max().item()
    tell(
        f"logits of the merged model ({merged.dtype}) and of the trained one "
        f"({f'{quantization} weights' if quantized else 'not quantized'}): "
        f"largest difference {difference:.2e}, {difference / trained.abs().max().item():.2%} of the largest logit"
    )
    return merged


def _logits(model: Any) -> Any:
    """Logits of some fixed tokens: [2, 16, vocabulary], float32."""
    import torch

    model.eval()
    size = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(1, 33) * 37 % size).reshape(2, 16)
    with torch.no_grad():
        return model(input_ids=ids.to(model.device)).logits.float().cpu()


def _dequantized(model: Any) -> Any:
    """The model in bfloat16, without the marks by which transformers would save it as a quantized one."""
    import torch

    model = model.dequantize()
    model.to(torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    return model

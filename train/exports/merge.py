"""Merge an adapter into its base model, and measure how far the merged model is from the trained one.

A QLoRA adapter was trained on 4-bit weights, so it is merged into what these weights stand for: the base is loaded as
it was in training, turned into 16 bits, and only then merged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from train.answers.trained import TrainedAdapter
from train.errors import TrainError, UserError, first_line

Print = Callable[[str], None]

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""By dtype of the merged model: how much rounding may change logits, as a share of the largest logit."""
_NOISE = 0.2
"""Below this share of TOLERANCE, a difference may be as large as the effect of the adapter itself."""


class MergeError(TrainError):
    """The merged model is not the trained one."""

    cause = "bad_configuration"
    code = "ZL-EXPORT-02"


def merge(adapter: TrainedAdapter, tell: Print) -> Any:
    """The base model with the adapter added, in the dtype of the base (bfloat16 after QLoRA).

    Raises UserError, and MergeError if the merged model's logits differ from the trained one's by more than rounding.
    """
    import torch
    from peft import PeftModel

    quantization = adapter.config.model.quantization
    quantized = adapter.config.model.loads_quantized
    if quantization == "published":
        raise UserError(
            "an adapter is not merged into weights that another package has packed",
            "export --to adapter, or train on the original checkpoint with model.quantization: nf4",
            code="ZL-EXPORT-01",
        )
    dtype = torch.bfloat16 if quantized else "auto"
    tell("loading the base model")
    base = adapter.load_base(dtype)
    adapted = PeftModel.from_pretrained(base, adapter.directory)
    trained = _logits(adapted)
    with adapted.disable_adapter():
        untrained = _logits(adapted)
    if quantized:
        tell(f"loading it again, from {quantization} weights to 16 bits")
        del adapted, base  # two models might not fit into memory
        base = _dequantized(adapter.load_base(dtype))
        adapted = PeftModel.from_pretrained(base, adapter.directory)
    _untie_if_adapted(adapted)
    tell("merging the adapter into the base model")
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"this adapter cannot be merged: {first_line(error)}", "export --to adapter", code="ZL-EXPORT-01"
        ) from error
    if merged.get_output_embeddings() is not None and not _is_tied(merged):
        merged.config.get_text_config().tie_word_embeddings = merged.config.tie_word_embeddings = False
    result = _logits(merged)
    largest = trained.abs().max().item()
    difference = (trained - result).abs().max().item()
    tell(
        f"logits of the merged model ({merged.dtype}) and of the trained one "
        f"({f'{quantization} weights' if quantized else 'not quantized'}): "
        f"largest difference {difference:.2e}, {difference / largest:.2%} of the largest logit"
    )
    if not is_rounding(trained, untrained, result, str(merged.dtype).removeprefix("torch.")):
        raise MergeError(
            f"the merged model is not the trained one: their logits differ by {difference:.2e}, "
            f"{difference / largest:.2%} of the largest; nothing was written",
            "export --to adapter keeps base and adapter apart, as they were trained",
        )
    return merged


def is_rounding(trained: Any, untrained: Any, merged: Any, dtype: str) -> bool:
    """Whether merged logits are the trained ones but for rounding to `dtype`.

    They must not be further away than TOLERANCE. Where they differ by more than noise, they must also lie nearer to the
    trained model than half of what the adapter changed: an adapter that was lost changes logits by all of that.
    """
    allowed = TOLERANCE.get(dtype, TOLERANCE["float32"])
    share = ((trained - merged).abs().max() / trained.abs().max()).item()
    if not share <= allowed:  # also NaN
        return False
    return share <= _NOISE * allowed or bool((trained - merged).norm() <= (trained - untrained).norm() / 2)


def _untie_if_adapted(adapted: Any) -> None:
    """Give the head a weight of its own where it shares that of the embedding, and one of them has an adapter.

    A merge writes into the shared weight, and so would change the other as well.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = (adapted.get_input_embeddings(), adapted.get_output_embeddings())
    if not any(isinstance(end, BaseTunerLayer) for end in ends):
        return
    embedding, head = (end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends)
    if head is not None and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _is_tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


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

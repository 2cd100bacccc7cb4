"""Whether a base model has ever been trained on the token that ends an answer.

Base models often reserve tokens for chat formats, or get them from `resize_token_embeddings`, without any training.
LoRA leaves embeddings and the output head alone, so such a model hardly learns to end its answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

SAMPLE = 4096
SMALL = 0.1
"""A row shorter than this share of the median row was never trained."""


def untrained_end(model: Any, tokenizer: Any, ends: Sequence[int], trained: str) -> str | None:
    """A warning if the first of `ends` looks untrained; `trained` is what the job trains besides LoRA.

    A collective under ZeRO-3.
    """
    if any(word in trained for word in ("embed", "lm_head", "word_embeddings", "output_layer")):
        return None
    found = [
        name
        for name, layer in (("embedding", model.get_input_embeddings()), ("output head", model.get_output_embeddings()))
        if layer is not None and _looks_untrained(layer.weight, ends[0], sorted(tokenizer.added_tokens_decoder))
    ]
    if not found:
        return None
    token = tokenizer.convert_ids_to_tokens(ends[0])
    return (
        f"the base model looks untrained on {token!r}, which ends an answer (its row of the {' and '.join(found)} is "
        "empty or equals that of another token): LoRA may not teach it to stop; add embed_tokens and lm_head to "
        "lora.modules_to_save, or use the instruct model or a data.chat_template that ends with a token it knows"
    )


def _looks_untrained(weight: Any, token: int, added: Sequence[int]) -> bool:
    import torch

    with _whole(weight) as rows, torch.no_grad():
        if rows.ndim != 2 or token >= len(rows) or not rows.is_floating_point():  # quantized: not to be compared
            return False
        row = rows[token].float()
        sample = rows[:: max(1, len(rows) // SAMPLE)].float()
        if row.norm() <= SMALL * sample.norm(dim=1).median():
            return True
        others = [other for other in added if other != token and other < len(rows)]
        return bool(others) and bool((rows[others].float() == row).all(dim=1).any())


@contextmanager
def _whole(weight: Any) -> Iterator[Any]:
    """The weight, gathered from all ranks if ZeRO-3 has spread it."""
    if not hasattr(weight, "ds_id"):
        yield weight
        return
    from deepspeed import zero

    with zero.GatheredParameters([weight]):
        yield weight

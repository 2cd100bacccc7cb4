"""Answers by transformers' generate(), greedily unless a temperature is given; what ends them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.data.prompts import end_ids, render
from train.model import limits

NO_PENALTIES: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}


def generation_config(tokenizer: Any, max_new_tokens: int, stop: list[int], temperature: float = 0.0) -> Any:
    """Greedy (temperature 0) or sampled generation, regardless of the model's own generation_config.json.

    transformers takes from that file whatever is not set here. Many chat models have a penalty in it: Qwen2.5 divides
    by 1.05 to 1.1 for every token of the question, which includes the labels to choose from.
    """
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        **({"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}),
        **NO_PENALTIES,
        eos_token_id=stop,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )


def saved_settings(tokenizer: Any, stop: list[int]) -> dict[str, Any]:
    """Generation settings for the files of a model: greedy answers that end at `stop`.

    The padding is never a token of prompts. Without an attention mask, generate() of transformers masks padding in a
    prompt: BOS too, where that is the padding.
    """
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id == tokenizer.bos_token_id else tokenizer.pad_token_id
    return {"do_sample": False, **NO_PENALTIES, "eos_token_id": stop, "pad_token_id": pad}


def save_stopping(place: Path, tokenizer: Any, stop: list[int]) -> None:
    """Write generation_config.json, and a tokenizer whose end token is the one that ends an answer.

    Many base models have another end token (`<|endoftext|>`), with which an answer of theirs would never end.
    """
    from transformers import GenerationConfig

    GenerationConfig(**saved_settings(tokenizer, stop)).save_pretrained(place)
    saved = copy.deepcopy(tokenizer)
    ending = next((token for token in end_ids(tokenizer) if token != tokenizer.eos_token_id), None)
    if ending is not None:
        shown = [("user", "a"), ("assistant", "b"), ("user", "c")]
        saved.eos_token = tokenizer.convert_ids_to_tokens(ending)
        if render(saved, shown) != render(tokenizer, shown):  # the template writes the old one
            saved.eos_token = tokenizer.eos_token
    saved.save_pretrained(place)


def answers_and_ends(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop: list[int], synced: bool
) -> list[tuple[str, bool]]:
    """(greedy answer, whether the model has ended it) of each token prompt; they are padded on the left.

    `synced` is for ZeRO-3: a rank goes on until all have finished, because each forward pass is a collective.
    """
    width = max(len(prompt) for prompt in prompts)
    settings = generation_config(tokenizer, limits.room_for(model, width, max_new_tokens), stop)
    answers = generated(model, tokenizer, prompts, settings, synced=synced)
    return [(decode(tokenizer, ids, stop), any(token in stop for token in ids)) for ids in answers]


def generated(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], settings: Any, *, synced: bool = False
) -> list[list[int]]:
    """What generate() adds to each token prompt by a GenerationConfig, one row per answer; padded on the left."""
    import torch

    device = model.get_input_embeddings().weight.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings, synced_gpus=synced
    )
    return [row[width:].tolist() for row in out]


def decode(tokenizer: Any, ids: list[int], stop: list[int]) -> str:
    """The text up to the first stop token."""
    end = next((place for place, token in enumerate(ids) if token in stop), len(ids))
    return str(tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()

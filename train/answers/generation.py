"""Generate answers: batches, streams, stop tokens and greedy settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def answer_batch(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop: list[int], synced: bool
) -> list[str]:
    """Greedy answers to token prompts, padded on the left. `synced`: ZeRO-3, where every rank must take every step."""
    import torch

    device = model.get_input_embeddings().weight.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=generation_config(tokenizer, max_new_tokens, stop),
        synced_gpus=synced,
    )
    return [text_of(tokenizer, row[width:].tolist(), stop) for row in out]


def generation_config(tokenizer: Any, max_new_tokens: int, stop: list[int], temperature: float = 0.0) -> Any:
    """Greedy (temperature 0) or sampled, whatever the model's own generation_config.json says.

    transformers fills what is not given here from that file, and many chat models have a penalty in it (Qwen2.5: 1.05
    to 1.1 for every token that the question holds, such as the names of the labels to choose from).
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


NO_PENALTIES: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}


def stop_ids(tokenizer: Any, config: Any) -> list[int]:
    """Tokens that end an answer: the end of sequence, what the template writes after answers, the family's own."""
    from train.data.prompts import end_ids
    from train.families import family_of

    known = tokenizer.get_vocab()
    own = [known[token] for token in family_of(config.to_dict()).stop_tokens if token in known]
    return list(dict.fromkeys([*end_ids(tokenizer), *own]))


def text_of(tokenizer: Any, ids: list[int], stop: list[int]) -> str:
    """The text up to the first stop token."""
    end = next((place for place, token in enumerate(ids) if token in stop), len(ids))
    return str(tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()


def stream(
    model: Any, tokenizer: Any, prompt: str, *, max_new_tokens: int, stop: list[int], temperature: float = 0.0
) -> Iterator[str]:
    """Pieces of the answer to a rendered prompt, as they come; who leaves early (a Ctrl-C, a closed iterator) ends the
    model's work after the token that it is at."""
    import threading

    import torch
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    encoded = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}  # some give token types as well
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failure: list[BaseException] = []
    left = threading.Event()

    def has_left(ids: Any, _scores: Any, **_others: Any) -> Any:
        return torch.full((len(ids),), left.is_set(), dtype=torch.bool, device=ids.device)

    def work() -> None:
        try:
            config = generation_config(tokenizer, max_new_tokens, stop, temperature)
            stopping: Any = StoppingCriteriaList([has_left])
            model.generate(**inputs, generation_config=config, streamer=streamer, stopping_criteria=stopping)
        except BaseException as error:
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:  # a process that ends in the middle of the model's work is aborted by the C++ library
        left.set()
        thread.join()
    if failure:
        raise failure[0]

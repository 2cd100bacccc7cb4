"""Answers per second: the fused layers beside transformers' generate() with the same PEFT model.

    python -m tests.bench.gpu answers [shape=llama3-8b] [quantization=none] [prompts=256] [new=64] [plain=64]

Prompts have the lengths of instruction records (lognormal, median 150). No token ends an answer, so both write equally
many. "alone" is one answer as in a chat; its generate() has no autocast, as there. With `plain` below `new`, generate()
writes so many tokens and a third of them, and the time of its further tokens is taken from the difference.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from tests.bench.gpu.cases import Case, lengths_of

NEVER = -1
"""Ends no answer."""


def measure(words: Iterable[str]) -> None:
    """Print a line of JSON per measurement, with the ratios in the last."""
    import numpy as np
    import torch

    from tests.bench.gpu import models

    given = {"shape": "llama3-8b", "quantization": "none", "prompts": "256", "new": "64", "plain": "", **_named(words)}
    count, new = int(given["prompts"]), int(given["new"])
    few = min(int(given["plain"] or new), new)
    kind = "none" if given["quantization"] == "fp8" else given["quantization"]
    model = models.build(Case(shape=given["shape"], quantization=kind)).eval()
    sizes = sorted((int(size) for size in lengths_of(Case(), count)), reverse=True)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(10, model.config.vocab_size - 10, size).tolist() for size in sizes]
    with torch.no_grad():
        _generate(model, prompts[-1:], 2)
        middle = prompts[len(prompts) // 2 :][:1]
        plain = {
            "alone": _generated(model, middle, new, few, 1, autocast=False),
            "batches of 16": _generated(model, prompts[: min(16 if few < new else 64, count)], new, few, 16),
            "batches of 64": _generated(model, prompts[: min(64 if few < new else 128, count)], new, few, 64),
        }
    from train.answers.fused_answers import MOST_SLOTS
    from train.fused.decoding import Decoder
    from train.fused.model import fuse

    fused = fuse(model, training=False, fp8=given["quantization"] == "fp8")
    capacity = sizes[0] + new
    ours: dict[str, tuple[int, float]] = {}
    for name, slots, some in (
        ("alone", 1, prompts[len(prompts) // 2 :][:1]), ("16 slots", 16, prompts[: min(64, count)]),
        ("64 slots", MOST_SLOTS, prompts),
    ):  # fmt: skip
        decoder = Decoder(fused, slots=slots, capacity=capacity, stop=[NEVER])
        list(decoder.answers(some[:1], [3]))  # compiles and records
        ours[name] = _timed(lambda d=decoder, s=some: len(list(d.answers(s, [new] * len(s)))))  # type: ignore[misc]
    rows = [*(("generate", *item) for item in plain.items()), *(("fused", *item) for item in ours.items())]
    rates = {}
    for engine, name, (records, seconds) in rows:
        rates[engine, name] = records / seconds
        line = {"engine": engine, "how": name, "answers/s": round(records / seconds, 2),
                "tokens/s": round(records * new / seconds, 1)}  # fmt: skip
        print(json.dumps({**given, **line}), flush=True)
    pairs = (
        ("alone", "alone"),
        ("16 slots", "batches of 16"),
        ("64 slots", "batches of 16"),
        ("64 slots", "batches of 64"),
    )
    print(json.dumps({f"{a} / {b}": round(rates["fused", a] / rates["generate", b], 2) for a, b in pairs}), flush=True)
    if torch.cuda.is_available():
        print(json.dumps({"peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 1)}), flush=True)


def _named(words: Iterable[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


def _timed(work: Callable[[], int]) -> tuple[int, float]:
    """(what `work` returns, seconds)."""
    import torch

    start = time.perf_counter()
    count = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count, time.perf_counter() - start


def _generated(
    model: Any, prompts: list[list[int]], new: int, few: int, size: int, *, autocast: bool = True
) -> tuple[int, float]:
    """(answers of `new` tokens, seconds that generate() takes for them), from `few` tokens of each if that is less."""

    def written(tokens: int) -> float:
        batches = (prompts[at : at + size] for at in range(0, len(prompts), size))
        return _timed(lambda: sum(_generate(model, batch, tokens, autocast=autocast) for batch in batches))[1]

    long = written(few)
    if few == new:
        return len(prompts), long
    short = max(1, few // 3)
    return len(prompts), long + (new - few) * (long - written(short)) / (few - short)


def _generate(model: Any, prompts: list[list[int]], new: int, *, autocast: bool = True) -> int:
    """The way of train/answers/generation.py, without a tokenizer; autocast: as evaluations do, and chats do not."""
    import torch

    from train.answers.generation import NO_PENALTIES

    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    device = model.get_input_embeddings().weight.device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=new, min_new_tokens=new,
            do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None, **NO_PENALTIES,
        )  # fmt: skip
    return len(prompts)

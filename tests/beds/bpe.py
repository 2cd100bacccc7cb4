"""A small byte-level tokenizer made on the spot, without torch or transformers."""

from __future__ import annotations

import functools

from train.data.recipe import Recipe

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<USER>", "<ASSISTANT>",
)  # fmt: skip


@functools.cache
def backend() -> str:
    """tokenizer.json"""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["user assistant system think answer 你好 天气 很好 hello again"] * 4, trainer)
    return str(bpe.to_str())


def token(name: str) -> int:
    return SPECIALS.index(name)


def recipe(template: str, *, eos: str = "<|im_end|>", end: str | None = None, max_length: int = 500) -> Recipe:
    ends = (token(eos), token(end)) if end else (token(eos),)
    specials = (("bos_token", "<|begin_of_text|>"), ("eos_token", eos))
    return Recipe(backend(), template, specials, token(eos), ends, max_length)

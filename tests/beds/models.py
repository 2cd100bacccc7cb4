"""One small checkpoint per row of the family table, in the layout in which such models are published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.beds import original

LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
GLM4_CHAT = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}


def tokenizer_at(place: Path, specials: list[str], eos: str, chat: str) -> Any:
    """A byte-level BPE tokenizer, trained on the spot if `place` has none yet."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if (place / "tokenizer.json").is_file():
        return transformers.AutoTokenizer.from_pretrained(place)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        original.varied_strings(500),
        trainers.BpeTrainer(vocab_size=700, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=specials[0], eos_token=eos, pad_token=specials[0], chat_template=chat
    )
    tokenizer.save_pretrained(place)
    return tokenizer


def native(place: Path, config: str, specials: list[str], eos: str, chat: str, **shape: Any) -> Path:
    """A random model of transformers' class for `config`, with a tokenizer of its own."""
    import torch
    import transformers

    tokenizer = tokenizer_at(place, specials, eos, chat)
    torch.manual_seed(0)
    settings = {**SHAPE, "vocab_size": len(tokenizer), "bos_token_id": 0, "pad_token_id": 0, **shape}
    made = getattr(transformers, config)(eos_token_id=tokenizer.eos_token_id, **settings)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(place)
    return place


_ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


def _glm(place: Path, second: bool) -> Path:
    vocabulary = original.sentencepiece_model()
    config = original.chatglm_config(1000, _name_or_path=f"THUDM/chatglm{2 if second else 3}-6b")
    return original.write(place, config, original.chatglm_tensors(config), vocabulary)


def _baichuan(place: Path, **kind: bool) -> Path:
    config = original.baichuan_config(900, **kind)
    return original.write(place, config, original.baichuan_tensors(config), original.sentencepiece_model())


_LLAMA3 = [
    f"<|{name}|>" for name in ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id")
]
_QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

MODELS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "llama3": ("llama", lambda place: native(place, "LlamaConfig", _LLAMA3, "<|end_of_text|>", LLAMA3_CHAT)),
    "qwen2": ("qwen", lambda place: native(place, "Qwen2Config", _QWEN, "<|endoftext|>", CHATML)),
    "qwen3": (
        "qwen",
        lambda place: native(place, "Qwen3Config", _QWEN, "<|im_end|>", CHATML, tie_word_embeddings=True),
    ),
    "mistral": (
        "mistral",
        lambda place: native(place, "MistralConfig", ["<s>", "</s>"], "</s>", MISTRAL_CHAT, sliding_window=None),
    ),
    "glm4": (
        "glm",
        lambda place: native(
            place, "GlmConfig", ["<|endoftext|>", "[gMASK]", "<sop>", *_ROLES], "<|endoftext|>", GLM4_CHAT
        ),
    ),
    "chatglm2": ("chatglm2", lambda place: _glm(place, True)),
    "chatglm3": ("chatglm3", lambda place: _glm(place, False)),
    "baichuan": ("baichuan", lambda place: _baichuan(place)),
    "baichuan2": ("baichuan", lambda place: _baichuan(place, second=True)),
    "baichuan2-13b": ("baichuan-alibi", lambda place: _baichuan(place, alibi=True, second=True)),
    "gpt-neox": (
        "any",
        lambda place: native(place, "GPTNeoXConfig", ["<|endoftext|>"], "<|endoftext|>", CHATML),
    ),
}
"""name -> (its family, how to make it in a new directory)"""

"""Chat templates of the field in small, and tokenizers whose added tokens are what a template writes."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.beds import bpe, models
from train.families import BAICHUAN_CHAT, CHATGLM2_CHAT, CHATGLM3_CHAT
from train.templating.chat_template import PLAIN_TEMPLATE

FILES = Path(__file__).parents[1] / "train/templating/templates"
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ASSISTANT: ' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
R1 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + m['content'].split('</think>')[-1].lstrip() + eos_token }}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
GLM45 = (
    "[gMASK]<sop>{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% set parts = m['content'].split('</think>') %}"
    "{% set thought = parts[0].split('<think>')[-1].strip() if parts | length > 1 else '' %}"
    "{{ '<|assistant|>\n<think>' + thought + '</think>\n' + parts[-1].strip() }}"
    "{% else %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
    "{{ '/nothink' if m['role'] == 'user' and enable_thinking is defined and not enable_thinking else '' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{{ '\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{% endif %}"
)
V31 = (
    "{% if thinking is not defined %}{% set thinking = false %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|></think>' + m['content'].split('</think>')[-1].lstrip() + eos_token }}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' + ('<think>' if thinking else '</think>') }}{% endif %}"
)
CHANNELS = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] }}"
    "{{ '<|channel|>final' if m['role'] == 'assistant' else '' }}{{ '<|message|>' + m['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
UNASKED = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
TRAILING = VICUNA.replace("{{ ' ASSISTANT:' }}", "{{ ' ASSISTANT: ' }}")

SMALL: dict[str, str] = {
    "qwen3": (FILES / "qwen3.jinja").read_text(encoding="utf-8"),
    "llama3": (FILES / "llama3.jinja").read_text(encoding="utf-8"),
    "glm4": (FILES / "glm4.jinja").read_text(encoding="utf-8").rstrip("\n"),
    "smollm2": (FILES / "smollm2.jinja").read_text(encoding="utf-8").rstrip("\n"),
    "mistral": models.MISTRAL_CHAT,
    "llama2": LLAMA2,
    "vicuna": VICUNA,
    "vicuna with a blank": TRAILING,
    "deepseek-r1": R1,
    "glm-4.5": GLM45,
    "deepseek-v3.1": V31,
    "gpt-oss": CHANNELS,
    "without add_generation_prompt": UNASKED,
    "chatglm2": CHATGLM2_CHAT,
    "chatglm3": CHATGLM3_CHAT,
    "baichuan": BAICHUAN_CHAT,
    "plain": PLAIN_TEMPLATE,
}


_PUBLISHED = (
    "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma3", "gemma4", "glm4moe", "glm4moe_training", "gptoss", "lfm2",
    "llama3_1", "nemotron_3_nano", "nemotron_3_nano_training", "phi3", "qwen2_5", "qwen3_5_nothink", "qwen3_5_think",
    "qwen3_6", "qwen3_8", "qwen3_instruct_2507", "qwen3_training",
)  # fmt: skip


def published() -> dict[str, str]:
    """Vendors' own templates, as TRL ships them; empty without TRL."""
    found = find_spec("trl")
    place = Path(found.origin).parent / "chat_templates" if found and found.origin else Path("/nowhere")
    files = [place / f"{name}.jinja" for name in _PUBLISHED]
    return {f"trl {file.stem}": file.read_text(encoding="utf-8") for file in files if file.exists()}


_TOKENS = re.compile(r"<[|｜][^<>'\"\s{}]{1,30}[|｜]>|</?think>|\[/?INST\]|<start_of_turn>|<end_of_turn>")


def tokenizer(template: str) -> Any:
    """A byte-level tokenizer of transformers with this template and the special tokens that it writes."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(bpe.backend())
    names = sorted(set(_TOKENS.findall(template)))
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names if "think" not in name]
    )
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in names if "think" in name])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.chat_template = template
    return made

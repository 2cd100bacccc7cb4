"""Render prompts with the model's chat template."""

from __future__ import annotations

from typing import Any

from train.templating.chat_template import PLAIN_TEMPLATE, ChatTemplate
from train.templating.turn_layout import Turns


def set_template(tokenizer: Any, template: str | None) -> None:
    """The job's chat template, else the model's own, else the plain one."""
    tokenizer.chat_template = template or tokenizer.chat_template or PLAIN_TEMPLATE


def render(tokenizer: Any, messages: Turns, **options: Any) -> str:
    turns = [{"role": role, "content": text} for role, text in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))


def prompt_text(tokenizer: Any, messages: Turns) -> str:
    """What stands before the next answer to `messages`, exactly as in training."""
    return _template_of(tokenizer).prompt_text(messages)


def end_ids(tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the end of sequence, and the special token that the template writes after answers."""
    first = tokenizer(_template_of(tokenizer).ending, add_special_tokens=False)["input_ids"][:1]
    special = [token for token in first if token in tokenizer.added_tokens_decoder]
    return list(dict.fromkeys([tokenizer.eos_token_id, *special]))


def _template_of(tokenizer: Any) -> ChatTemplate:
    return ChatTemplate(own_template(tokenizer), tokenizer.special_tokens_map)


def own_template(tokenizer: Any) -> str:
    """A tokenizer may carry several templates by name; `default` is the one for conversations."""
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    return str(template.get("default", PLAIN_TEMPLATE) if isinstance(template, dict) else template)

"""Render prompts with the model's chat template."""

from __future__ import annotations

import json
from typing import Any

from train.errors import UserError
from train.templating.chat_template import PLAIN_TEMPLATE, ChatTemplate
from train.templating.turn_layout import Turns


def set_template(tokenizer: Any, template: str | None) -> None:
    """The job's chat template, else the model's own, else the plain one."""
    tokenizer.chat_template = template or tokenizer.chat_template or _plain_template(tokenizer)


def _plain_template(tokenizer: Any) -> str:
    """The template of a model without one. It writes first what the tokenizer puts before every text, such as `<s>`.

    A base model has seen that at the beginning of every text. As part of the saved template it stands there in every
    use. Raises UserError if the template cannot write it.
    """
    ids, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    count = next((place for place in range(len(ids)) if ids[place : place + len(bare)] == bare), 0)
    opening = "".join(tokenizer.convert_ids_to_tokens(ids[:count]))
    if tokenizer(opening, add_special_tokens=False)["input_ids"] != ids[:count]:
        raise UserError(
            f"the tokenizer begins every text with tokens that a template cannot write: {opening!r}",
            "give data.chat_template a template of your own",
        )
    if not opening:
        return PLAIN_TEMPLATE
    return f"{{{{ {'bos_token' if opening == tokenizer.bos_token else json.dumps(opening)} }}}}{PLAIN_TEMPLATE}"


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
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return str(template or _plain_template(tokenizer))

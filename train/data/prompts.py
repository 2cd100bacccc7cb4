"""Render prompts with the model's chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from train.errors import UserError
from train.families import STOP_TOKENS, family_of, template_of
from train.templating import thinking as thoughts
from train.templating.chat_template import PLAIN_TEMPLATE, ChatTemplate
from train.templating.generation_prompt import Forms, forms
from train.templating.turn_layout import Turns


def set_template(tokenizer: Any, template: str | None, thinking: str = "auto") -> None:
    """The job's chat template, else the model's own, else the plain one, in the form that asks as training does.

    `template`: its text, or its name in the table. `thinking` is model.thinking; auto takes the form for answers
    without thoughts until `expect_thoughts`. Raises UserError for a template without such a form.
    """
    own = template_of(template) if template else tokenizer.chat_template
    tokenizer.chat_template = own or _plain_template(tokenizer)
    found = _forms(tokenizer)
    chosen = {"auto": found.off or found.on, "on": found.on, "off": found.stripped}[thinking]
    if chosen is None:
        raise _no_form(thinking)
    _set(tokenizer, chosen)


def expect_thoughts(tokenizer: Any) -> bool:
    """Change to the form for answers with thoughts. False if the template has no other form, or asks for them."""
    found = _forms(tokenizer)
    if found.on is None or found.on == own_template(tokenizer) or not found.depend_on_thoughts:
        return False
    _set(tokenizer, found.on)
    return True


def keep_template(tokenizer: Any, thinking: str) -> None:
    """Ask with the template of a saved adapter; give that of an earlier version the form in which it was trained."""
    if not thoughts.is_form(own_template(tokenizer)):
        set_template(tokenizer, None, thinking)


def template_facts(tokenizer: Any) -> dict[str, str | None]:
    """Whether the template asks for thoughts (`on`, `off`, or None if it knows no difference), and whose it is."""
    template = own_template(tokenizer)
    whose = "asks as in training" if thoughts.is_form(template) else "as given"
    return {"thinking": thoughts.mode_of(template), "chat_template": whose}


def _forms(tokenizer: Any) -> Forms:
    return forms(own_template(tokenizer), tokenizer.special_tokens_map)


def _set(tokenizer: Any, template: str) -> None:
    named = tokenizer.chat_template
    tokenizer.chat_template = {**named, "default": template} if isinstance(named, dict) else template


def _no_form(thinking: str) -> UserError:
    if thinking == "on":
        return UserError(
            "model.thinking is on, but the chat template does not show the thoughts of an answer",
            "set model.thinking: auto, or give data.chat_template a template that shows them",
            code="ZL-MODEL-05",
        )
    return UserError(
        "no form of the chat template shows a text answer behind what it asks for one with (add_generation_prompt)",
        "give data.chat_template a template of your own",
        code="ZL-MODEL-05",
    )


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
            code="ZL-MODEL-05",
        )
    if not opening:
        return PLAIN_TEMPLATE
    return f"{{{{ {'bos_token' if opening == tokenizer.bos_token else json.dumps(opening)} }}}}{PLAIN_TEMPLATE}"


def as_messages(turns: Turns) -> list[dict[str, str]]:
    """The conversation as chat templates and OpenAI's interface take it."""
    return [{"role": role, "content": text} for role, text in turns]


def render(tokenizer: Any, turns: Turns, **options: Any) -> str:
    return str(tokenizer.apply_chat_template(as_messages(turns), tokenize=False, **options))


def prompt_text(tokenizer: Any, messages: Turns) -> str:
    """What stands before the next answer to `messages`, exactly as in training."""
    return _template_of(tokenizer).prompt_text(messages)


def end_ids(tokenizer: Any) -> list[int]:
    """Tokens that end an answer, the end of sequence first."""
    return list(answer_ends(tokenizer).ends)


def stop_ids(tokenizer: Any, config: Any) -> list[int]:
    """Tokens that end an answer: end of sequence, what the template writes after answers, and the family's own."""
    known = tokenizer.get_vocab()
    own = [known[token] for token in family_of(config.to_dict()).stop_tokens if token in known]
    return list(dict.fromkeys([*end_ids(tokenizer), *own]))


@dataclass(frozen=True)
class AnswerEnds:
    """What a model writes behind an answer. `ends`: any of these tokens; also where a model stops."""

    ends: tuple[int, ...]
    last: int
    """Put behind the last answer of a conversation if the template writes none of `ends` there."""
    next_turn: tuple[int, int] | None = None
    """(token, prediction): the token that begins the next turn, where the template writes it right behind an answer.

    The model sees the token behind it, and predicts the end of sequence there, unless models stop at the token itself.
    """


def answer_ends(tokenizer: Any) -> AnswerEnds:
    """By the special token that the template writes after the last answer, and after one that is followed by a turn.

    GLM-4 and ChatGLM3 stop at `<|user|>`, with which the next turn begins. Baichuan's own fine-tuning predicts the end
    of sequence where the next turn's token stands.
    """
    template, eos = _template_of(tokenizer), int(tokenizer.eos_token_id)
    own = _special(tokenizer, template.ending)
    ends = [eos] if own is None else [eos, own]
    following = _special(tokenizer, template.following)
    if following is None or following in ends:
        return AnswerEnds(tuple(dict.fromkeys(ends)), eos)
    if tokenizer.convert_ids_to_tokens(following) not in STOP_TOKENS:
        return AnswerEnds(tuple(dict.fromkeys(ends)), eos, (following, eos))
    return AnswerEnds(
        tuple(dict.fromkeys([*ends, following, *_stops(tokenizer)])),
        following if own is None else eos,
        (following, following),
    )


def _stops(tokenizer: Any) -> list[int]:
    """The special tokens of this tokenizer at which some family stops, such as `<|observation|>` behind a call."""
    return [token for token, added in tokenizer.added_tokens_decoder.items() if added.content in STOP_TOKENS]


def _special(tokenizer: Any, text: str) -> int | None:
    """The token that a text begins with, if it is a special one."""
    first = tokenizer(text, add_special_tokens=False)["input_ids"][:1]
    return first[0] if first and first[0] in tokenizer.added_tokens_decoder else None


def _template_of(tokenizer: Any) -> ChatTemplate:
    return ChatTemplate(own_template(tokenizer), tokenizer.special_tokens_map)


def own_template(tokenizer: Any) -> str:
    """A tokenizer may carry several templates by name; `default` is the one for conversations."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return str(template or _plain_template(tokenizer))

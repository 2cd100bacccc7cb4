"""Ollama's Modelfile for a merged model. Pure: texts in, text out.

Ollama uses templates of its own (Go's text/template). So the model's Jinja template is not translated but measured:
what does it write before and after each role's content? The result is tried on longer conversations, and refused if it
renders one of them differently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from train.errors import UserError

Turns = Sequence[tuple[str, str]]
"""(role, text) of each message."""
Render = Callable[..., str]
"""render(turns) or render(turns, add_generation_prompt=True), by the model's chat template."""

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types of the families in train/families.py that `ollama create` reads from safetensors."""


@dataclass(frozen=True)
class Template:
    """(before, after) of each role's content, and what begins an answer."""

    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    default: str = ""
    """The begin of a conversation that has no system message."""

    def render(self, turns: Turns) -> str:
        """The prompt for the next answer, as Ollama renders it from `to_go`."""
        around = {"system": self.system or ("", ""), "user": self.user, "assistant": self.assistant}
        start = "" if turns[0][0] == "system" else self.default
        return start + "".join(around[role][0] + text + around[role][1] for role, text in turns) + self.answer

    def to_go(self) -> str:
        """The text for Ollama's TEMPLATE. Ollama itself adds the begin-of-sequence token."""
        parts = []
        for word, role in (("if", "system"), ("else if", "user"), ("else if", "assistant")):
            around = getattr(self, role) or ("", "")
            parts.append(
                f'{{{{ {word} eq .Role "{role}" }}}}{_literal(around[0])}{{{{ .Content }}}}{_literal(around[1])}'
            )
        start = f"{{{{ if not .System }}}}{_literal(self.default)}{{{{ end }}}}" if self.default else ""
        return f"{start}{{{{ range .Messages }}}}{''.join(parts)}{{{{ end }}}}{{{{ end }}}}{_literal(self.answer)}"


def _literal(text: str) -> str:
    """Text that Go's templates and the Modelfile leave as it is: a quoted string where they would read it otherwise."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{{" in text or '"' in text else text


def check_supported(model_type: str) -> None:
    """Raise UserError for a model type that Ollama does not import."""
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"Ollama cannot import a {model_type} model from safetensors (it can for {', '.join(MODEL_TYPES)})",
            "export --to merged, then make a GGUF file with llama.cpp's convert_hf_to_gguf.py",
        )


S, U, A, V = "\u241fsystem\u241f", "\u241fuser\u241f", "\u241fanswer\u241f", "\u241fagain\u241f"
"""Contents that no template writes by itself, so they can be found in what it renders."""


def measure(render: Render, bos: str) -> Template:
    """Measure a chat template. Raises UserError if an Ollama template cannot express it."""
    before, after = _split(render([("user", U)], add_generation_prompt=True), U)
    before = before.removeprefix(bos)
    closing = _split(render([("user", U)]), U)[1]
    between, rest = _split(render([("user", U), ("assistant", A), ("user", V)]).partition(U)[2], A)
    follows, _ = _split(rest, V)
    opening = _common_end(before, follows)  # begins a user's turn at every place
    if not between.startswith(closing) or not after.startswith(closing):
        raise _refusal()
    system: tuple[str, str] | None = None
    try:
        head, tail = _split(render([("system", S), ("user", U)]), S)
        lead, _ = _split(tail, U)
        if not lead.endswith(opening):
            opening = _common_end(opening, lead)
        system = (head.removeprefix(bos), lead[: len(lead) - len(opening)])
    except Exception:  # a template that takes no system message raises an error of its own
        pass
    found = Template(
        system=system,
        user=(opening, closing),
        assistant=(between.removeprefix(closing), follows[: len(follows) - len(opening)]),
        answer=after.removeprefix(closing),
        default=before[: len(before) - len(opening)],
    )
    _try_out(found, render, bos)
    return found


def _try_out(template: Template, render: Render, bos: str) -> None:
    """Raise UserError if the template renders some conversation otherwise than `render`."""
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    for probe in (turns[:1], turns[:3], turns, *([[("system", "s"), *turns]] if template.system else [])):
        if template.render(probe) != render(probe, add_generation_prompt=True).removeprefix(bos):
            raise _refusal()


def _common_end(one: str, other: str) -> str:
    size = 0
    while size < min(len(one), len(other)) and one[-size - 1] == other[-size - 1]:
        size += 1
    return one[len(one) - size :]


def _split(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found:
        raise _refusal()
    return before, after


def _refusal() -> UserError:
    return UserError(
        "this model's chat template depends on more than roles and contents; Ollama's templates cannot express that",
        "export --to merged, and write the Modelfile by hand",
    )


def modelfile(template: Template, stop: Sequence[str], system: str | None) -> str:
    """The Modelfile: weights, template, the tokens that end an answer, and the system message of training."""
    lines = ["FROM .", f'TEMPLATE """{template.to_go()}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}" for token in stop]
    return "\n".join([*lines, "PARAMETER temperature 0"]) + "\n"

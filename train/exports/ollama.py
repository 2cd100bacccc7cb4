"""Ollama's Modelfile for a merged model. Pure: texts in, text out.

Ollama has templates of its own (Go's text/template), so the model's Jinja template is not copied but measured: what it
writes before and after each role's content. The result is tried on a longer conversation and refused where it differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from train.errors import UserError

Turns = Sequence[tuple[str, str]]
Render = Callable[..., str]
"""render(turns) and render(turns, add_generation_prompt=True) of the chat template."""

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Models that `ollama create` reads from safetensors, of the families in train/families.py."""


@dataclass(frozen=True)
class Template:
    """What stands around each role's content, and before an answer."""

    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    default: str = ""
    """What a conversation without a system message begins with."""

    def render(self, turns: Turns) -> str:
        """The prompt for the next answer (Python's own reading of `go`)."""
        around = {"system": self.system or ("", ""), "user": self.user, "assistant": self.assistant}
        start = "" if turns[0][0] == "system" else self.default
        return start + "".join(around[role][0] + text + around[role][1] for role, text in turns) + self.answer

    def go(self) -> str:
        """As Ollama's TEMPLATE; it adds the begin-of-sequence token itself."""
        parts = []
        for word, role in (("if", "system"), ("else if", "user"), ("else if", "assistant")):
            around = getattr(self, role) or ("", "")
            parts.append(f'{{{{ {word} eq .Role "{role}" }}}}{_go(around[0])}{{{{ .Content }}}}{_go(around[1])}')
        start = f"{{{{ if not .System }}}}{_go(self.default)}{{{{ end }}}}" if self.default else ""
        return f"{start}{{{{ range .Messages }}}}{''.join(parts)}{{{{ end }}}}{{{{ end }}}}{_go(self.answer)}"


def _go(text: str) -> str:
    """Literal text; whatever Go's templates or the Modelfile could read otherwise, as a quoted string."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{{" in text or '"' in text else text


def check(model_type: str) -> None:
    """Raise UserError for a model that Ollama does not import."""
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"Ollama reads no safetensors of a {model_type} model (it does of {', '.join(MODEL_TYPES)})",
            "export --to merged, and make a GGUF file of it with llama.cpp's convert_hf_to_gguf.py",
        )


S, U, A, V = "\u241fsystem\u241f", "\u241fuser\u241f", "\u241fanswer\u241f", "\u241fagain\u241f"


def template_of(render: Render, bos: str) -> Template:
    """Measure a chat template. Raises UserError if a template of Ollama's cannot say the same."""
    before, after = _split(render([("user", U)], add_generation_prompt=True), U)
    before = before.removeprefix(bos)
    closing = _split(render([("user", U)]), U)[1]
    between, rest = _split(render([("user", U), ("assistant", A), ("user", V)]).partition(U)[2], A)
    follows, _ = _split(rest, V)
    opening = _common_end(before, follows)  # what begins a user's turn, wherever it stands
    if not between.startswith(closing) or not after.startswith(closing):
        raise _refusal()
    system: tuple[str, str] | None = None
    try:
        head, tail = _split(render([("system", S), ("user", U)]), S)
        lead, _ = _split(tail, U)
        if not lead.endswith(opening):
            opening = _common_end(opening, lead)
        system = (head.removeprefix(bos), lead[: len(lead) - len(opening)])
    except Exception:  # templates refuse roles by errors of their own
        pass
    found = Template(
        system=system,
        user=(opening, closing),
        assistant=(between.removeprefix(closing), follows[: len(follows) - len(opening)]),
        answer=after.removeprefix(closing),
        default=before[: len(before) - len(opening)],
    )
    probe = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    for turns in (probe[:1], probe[:3], probe, *([[("system", "s"), *probe]] if system else [])):
        if found.render(turns) != render(turns, add_generation_prompt=True).removeprefix(bos):
            raise _refusal()
    return found


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
        "this model's chat template depends on more than roles and contents, which Ollama's templates cannot say",
        "export --to merged, and write the Modelfile by hand",
    )


def modelfile(template: Template, stop: Sequence[str], system: str | None) -> str:
    """FROM ., the template, the tokens that end an answer, the system message the model was trained with."""
    lines = ["FROM .", f'TEMPLATE """{template.go()}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}" for token in stop]
    return "\n".join([*lines, "PARAMETER temperature 0"]) + "\n"

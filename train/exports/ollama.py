"""Ollama's Modelfile for a merged model. Pure: texts in, text out.

Ollama uses templates of its own (Go's text/template). So the model's Jinja template is not translated but measured:
what does it write before and after each role's content? The result is tried on longer conversations, and refused if it
renders one of them differently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.errors import UserError

Turns = Sequence[tuple[str, str]]
"""(role, text) of each message."""
Render = Callable[..., str]
"""render(turns) or render(turns, add_generation_prompt=True), by the model's chat template."""

_LLAMA = ("default", "linear", "llama3")
CONVERTED: dict[str, tuple[str, ...]] = {
    "LlamaForCausalLM": _LLAMA,
    "MixtralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": ("default",),
    "GemmaForCausalLM": ("default",),
    "Gemma2ForCausalLM": ("default",),
    "Gemma3ForCausalLM": ("default", "yarn"),
    "Phi3ForCausalLM": ("default", "longrope"),
    "Olmo3ForCausalLM": ("default", "yarn"),
    "CohereForCausalLM": ("default",),
    "Lfm2ForCausalLM": ("default",),
}
"""Architectures that `ollama create` reads from safetensors, and the rotary scalings that it carries over.

From convert/convert.go and convert/convert_*.go of Ollama, August 2026. Mistral and Qwen 3 are not among them, nor are
multimodal models here.
"""


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
    """Text that Go's templates and the Modelfile leave as it is: a quoted string where they would read it otherwise.

    The Modelfile's parser drops characters that Go does not call printable, such as the ideographic space.
    """
    odd = [c for c in text if c not in " \n" and not c.isprintable()]
    return f"{{{{ {_quoted(text)} }}}}" if "{{" in text or '"' in text or odd else text


def _quoted(text: str) -> str:
    """A string of Go in ASCII characters and those that the Modelfile keeps."""
    plain = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else "".join(f"\\U{ord(c):08x}") for c in plain)


def check_supported(config: Mapping[str, Any]) -> None:
    """Raise UserError for a model, by its config.json, that Ollama does not import or imports otherwise than it is."""
    name = str((config.get("architectures") or ["?"])[0])
    if name not in CONVERTED:
        raise _not_imported(f"a {name} from safetensors (it can import {', '.join(CONVERTED)})")
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type", "default") not in CONVERTED[name]:
        raise _not_imported(f"a {name} with {rope['rope_type']} rotary scaling: it would drop the scaling")
    if CONVERTED[name] is _LLAMA:  # its rows of queries and keys are reordered, by these keys and without biases
        heads, size = config["num_attention_heads"], config["hidden_size"]
        if (config.get("head_dim") or size // heads) * heads != size:
            raise _not_imported(f"a {name} whose heads do not add up to its hidden size")
        if config.get("attention_bias") or config.get("mlp_bias"):
            raise _not_imported(f"a {name} with biases")
    if config.get("use_sliding_window"):
        raise _not_imported(f"a {name} with a sliding window: it would drop the window")


def _not_imported(what: str) -> UserError:
    return UserError(
        f"Ollama cannot import {what}",
        "export --to merged, then make a GGUF file with llama.cpp's convert_hf_to_gguf.py",
        code="ZL-EXPORT-01",
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
    except Exception:  # noqa: S110 - a template that takes no system message raises an error of its own
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


def limits(template: Template, render: Render, bos: str) -> list[str]:
    """What a conversation may hold that Ollama shows otherwise than the chat template does."""
    cases = {
        "blanks around a content: Ollama keeps them, the chat template removes them": [("user", "\n a \n")],
        "thoughts of earlier answers: Ollama shows what the client sends, the chat template leaves them out": [
            ("user", "a"),
            ("assistant", "<think>\nb\n</think>\n\nc"),
            ("user", "d"),
        ],
    }
    return [
        said
        for said, turns in cases.items()
        if template.render(turns) != render(turns, add_generation_prompt=True).removeprefix(bos)
    ]


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
        code="ZL-EXPORT-01",
    )


def modelfile(template: Template, stop: Sequence[str], system: str | None) -> str:
    """The Modelfile: weights, template, the tokens that end an answer, and the system message of training."""
    lines = ["FROM .", f'TEMPLATE """{template.to_go()}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}" for token in stop]
    return "\n".join([*lines, "PARAMETER temperature 0"]) + "\n"

"""Chat templates turned into Ollama's, or refused if Ollama cannot express them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest

from tests.beds import asking, gotemplate
from tests.beds.models import CHATML, GLM4_CHAT, LLAMA3_CHAT, MISTRAL_CHAT
from train.errors import UserError
from train.exports import ollama
from train.families import BAICHUAN_CHAT, CHATGLM2_CHAT
from train.templating.chat_template import ChatTemplate

QWEN25 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}" + CHATML
)
NO_SYSTEM = "{% for m in messages %}{% if m['role'] == 'system' %}{{ fail() }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"  # noqa: E501 - one template


def renderer(template: str) -> Any:
    def fail() -> None:
        raise jinja2.TemplateError("no system message")

    compiled = jinja2.Environment().from_string(template)

    def render(turns: Any, add_generation_prompt: bool = False) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        return compiled.render(
            messages=messages, add_generation_prompt=add_generation_prompt, bos_token="<s>", eos_token="</s>", fail=fail
        )

    return render


@pytest.mark.parametrize("template", [CHATML, LLAMA3_CHAT, MISTRAL_CHAT, QWEN25, GLM4_CHAT, BAICHUAN_CHAT, NO_SYSTEM])
def test_a_template_of_roles_and_contents_is_measured_exactly(template: str) -> None:
    render = renderer(template)
    found = ollama.measure(render, "<s>")
    turns = [("user", "你好"), ("assistant", "好"), ("user", "再见"), ("assistant", "bye"), ("user", "1 + 1")]
    for asked in (turns, turns[:1], turns[:3]):
        assert found.render(asked) == render(asked, add_generation_prompt=True).removeprefix("<s>")


def test_the_modelfile_holds_the_template_in_go() -> None:
    found = ollama.measure(renderer(QWEN25), "")
    text = ollama.modelfile(found, ["<|im_end|>"], "简短回答")
    assert text == (
        'FROM .\nTEMPLATE """{{ if not .System }}<|im_start|>system\nYou are Qwen.{{ end }}{{ range .Messages }}'
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}'
        '{{ else if eq .Role "user" }}<|im_end|>\n<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}{{ end }}{{ end }}'
        '<|im_start|>assistant\n"""\nSYSTEM """简短回答"""\nPARAMETER stop "<|im_end|>"\nPARAMETER temperature 0\n'
    )


def test_a_template_that_ollama_cannot_express_is_refused() -> None:
    with pytest.raises(UserError, match="more than roles"):
        ollama.measure(renderer(CHATGLM2_CHAT), "")  # it numbers the rounds


LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_size": 48, "num_attention_heads": 4, "head_dim": 12}


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        {**LLAMA, "head_dim": None},
        {**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
        {"architectures": ["Qwen2ForCausalLM"], "rope_parameters": {"rope_type": "default"}},
        {"architectures": ["Gemma3ForCausalLM"], "rope_parameters": {"full_attention": {"rope_type": "default"}}},
    ],
)
def test_a_model_that_ollama_converts_passes(config: Any) -> None:
    ollama.check_supported(config)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "a MistralForCausalLM from safetensors"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "a Qwen3ForCausalLM from safetensors"),
        ({"architectures": ["AlibiLlamaForCausalLM"]}, "a AlibiLlamaForCausalLM from safetensors"),
        ({"architectures": None}, "from safetensors"),
        ({**LLAMA, "rope_parameters": {"rope_type": "yarn"}}, "yarn rotary scaling"),
        ({**LLAMA, "head_dim": 16}, "heads do not add up"),
        ({**LLAMA, "attention_bias": True}, "with biases"),
        ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, "sliding window"),
        (
            {"architectures": ["Gemma3ForCausalLM"], "rope_parameters": {"full_attention": {"rope_type": "linear"}}},
            "linear rotary scaling",
        ),
    ],
)
def test_a_model_that_ollama_does_not_convert_or_converts_wrongly_is_refused(config: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        ollama.check_supported(config)


ODD = (
    "{% for m in messages %}{{ '\"' + m.role + ':\\u3000{{ \\n' + m.content + '\\u00ad|' }}{% endfor %}"
    "{{ '\"assistant:\\u3000{{ \\n' if add_generation_prompt }}"
)
"""Quotation marks, Go's own braces, and characters that the parser of Modelfiles drops."""


def conversations(template: ollama.Template) -> list[Any]:
    turns = [("user", "a {{ b }}"), ("assistant", "b"), ("user", "c"), ("assistant", '"d"'), ("user", "e")]
    plain = [turns[:1], turns[:3], turns]
    return [*plain, *([[("system", "s"), *asked] for asked in plain] if template.system else [])]


@pytest.mark.parametrize("name", [*asking.SMALL, "odd"])
def test_ollama_renders_the_modelfile_as_training_asks(name: str) -> None:
    """In the form that is saved with an adapter, as an export measures it."""
    from train.templating.generation_prompt import forms

    own = asking.SMALL.get(name, ODD)
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    found = forms(own, specials)
    assert found.off
    for form in {found.off, found.on} - {None}:
        template = ChatTemplate(str(form), specials)

        def shown(turns: Any, add_generation_prompt: bool = False, template: Any = template) -> str:
            return str(template.render(turns, prompt=add_generation_prompt))

        try:
            measured = ollama.measure(shown, "<s>")
        except UserError:
            assert name == "chatglm2"  # it counts the rounds
            continue
        text = gotemplate.template_of(ollama.modelfile(measured, ["</s>"], None))
        for turns in conversations(measured):
            assert gotemplate.render(text, turns) == template.prompt_text(turns).removeprefix("<s>")


def test_a_modelfile_says_what_ollama_shows_otherwise() -> None:
    trimmed = renderer(asking.SMALL["llama3"].replace("{% generation %}", ""))
    assert [limit[:6] for limit in ollama.limits(ollama.measure(trimmed, "<s>"), trimmed, "<s>")] == ["blanks"]
    thoughtful = renderer(asking.R1)
    assert [limit[:8] for limit in ollama.limits(ollama.measure(thoughtful, ""), thoughtful, "")] == ["thoughts"]
    assert ollama.limits(ollama.measure(renderer(CHATML), ""), renderer(CHATML), "") == []


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go (apt: golang-go)")
def test_go_itself_renders_as_our_reading_of_its_templates(tmp_path: Path) -> None:
    program = gotemplate.build_go(tmp_path)
    for own in (ODD, QWEN25, CHATML, MISTRAL_CHAT, BAICHUAN_CHAT):
        measured = ollama.measure(renderer(own), "<s>")
        text = gotemplate.template_of(ollama.modelfile(measured, [], None))
        for turns in conversations(measured):
            assert gotemplate.by_go(program, text, turns) == gotemplate.render(text, turns) == measured.render(turns)

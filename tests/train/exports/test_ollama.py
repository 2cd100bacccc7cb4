"""Chat templates turned into Ollama's, or refused if Ollama cannot express them."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

from tests.beds.models import CHATML, GLM4_CHAT, LLAMA3_CHAT, MISTRAL_CHAT
from train.errors import UserError
from train.exports import ollama
from train.families import BAICHUAN_CHAT, CHATGLM2_CHAT

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
    for said in (turns, turns[:1], turns[:3]):
        assert found.render(said) == render(said, add_generation_prompt=True).removeprefix("<s>")


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

"""A table of model families: LoRA targets, chat format, converter, engines, quantization, ZeRO stages.

train/compat.py decides which of a family's engines trains a job; its rules know what each engine cannot do.

Standard library only: the launcher reads this table to check a job before anything is queued.
To add a family, add a row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Engine = Literal["fused", "unsloth", "peft"]

FUSED_TYPES = frozenset(
    ("llama", "mistral", "qwen2", "qwen3", "glm", "gemma3", "gemma3_text", "phi3", "ministral", "glm4", "smollm3",
     "granite", "ernie4_5", "seed_oss", "exaone4")
)  # fmt: skip
"""`model_type` (after conversion) of the models whose layers train/fused/model.py computes."""

MARKER = "zlaunch_family"
"""Key of a converted checkpoint's config.json: the family it came from (its own model type is a general one)."""

LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GLM_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")

# These formats are those of the original programs, as their own fine-tuning writes them (docs/original-formats.md).
# Behind an answer, the next turn begins at once: the token that begins it is what ends the answer.
CHATGLM2_CHAT = (
    "[gMASK]<sop>{% set ns = namespace(round=0) %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{% if ns.round %}{{ '\\n\\n' }}{% endif %}{% set ns.round = ns.round + 1 %}"
    "{{ '[Round ' ~ ns.round ~ ']\\n\\n问：' ~ message['content'] }}"
    # The original tokenizes the present answer by itself, and sentencepiece begins it with a blank.
    "{% else %}{{ '\\n\\n答：' }}{% if loop.last and not add_generation_prompt %}{{ ' ' }}{% endif %}"
    "{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\\n\\n答：' }}{% endif %}"
)
CHATGLM3_CHAT = (
    "[gMASK]<sop>{% if tools %}{{ '<|system|>\\n Answer the following questions as best as you can. '"
    " + 'You have access to the following tools:\\n'"
    " + (tools | map(attribute='function') | list | tojson(ensure_ascii=False, indent=4)) }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    # The model generates the rest of the role's line, which names a tool that it calls, and a blank: with an English
    # word it is one token.
    "{{ '<|assistant|>' }}{% set calls = message['tool_calls'] or [] %}"
    "{% if calls and not tools %}{{ raise_exception('the record calls a tool, but declares no tools') }}{% endif %}"
    "{% generation %}{% if message['content'] or not calls %}{{ '\\n ' + message['content'] }}"
    "{% if calls %}{{ '<|assistant|>' }}{% endif %}{% endif %}"
    "{% for call in calls %}{{ call['function']['name'] + '\\n ```python\\ntool_call(' }}"
    "{% for name, value in call['function']['arguments'].items() %}{{ '%s=%r' | format(name, value) }}"
    "{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ')\\n```' }}"
    "{% if not loop.last %}{{ '<|assistant|>' }}{% endif %}{% endfor %}{% endgeneration %}"
    "{% if loop.last %}{{ eos_token }}{% endif %}{% else %}"
    "{{ '<|' + ('observation' if message['role'] == 'tool' else message['role']) + '|>\\n ' + message['content'] }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
BAICHUAN_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<USER>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<ASSISTANT>' + message['content'] }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<ASSISTANT>' }}{% endif %}"
)


_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_SYSTEM_IN_FIRST = (
    "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.system = BEFORE + message['content'] + AFTER %}{% elif message['role'] == 'user' %}"
)
"""These formats have no turn of the system: its text begins the next question."""
_LLAMA2 = (
    _SYSTEM_IN_FIRST.replace("BEFORE", "'<<SYS>>\\n'").replace("AFTER", "'\\n<</SYS>>\\n\\n'")
    + "{{ bos_token + '[INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_MISTRAL = (
    "{{ bos_token }}"
    + _SYSTEM_IN_FIRST.replace("BEFORE", "''").replace("AFTER", "'\\n\\n'")
    + "{{ '[INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}"
    + _SYSTEM_IN_FIRST.replace("BEFORE", "''").replace("AFTER", "'\\n\\n'")
    + "{{ '<start_of_turn>user\\n' + ns.system + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% set ns.system = '' %}"
    "{% else %}{{ '<start_of_turn>model\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_VICUNA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_ALPACA = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
_ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_PHI3 = _ZEPHYR.replace("eos_token + '\\n'", "'<|end|>\\n'")
_GLM4 = (
    "[gMASK]<sop>{% for message in messages %}"
    "{{ '<|' + ('observation' if message['role'] == 'tool' else message['role']) + '|>\\n' + message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
CHAT_TEMPLATES: dict[str, str] = {
    "alpaca": _ALPACA,
    "chatglm2": CHATGLM2_CHAT,
    "chatglm3": CHATGLM3_CHAT,
    "chatml": _CHATML,
    "gemma": _GEMMA,
    "glm4": _GLM4,
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "phi3": _PHI3,
    "qwen": _CHATML,
    "vicuna": _VICUNA,
    "zephyr": _ZEPHYR,
}
"""Names that data.chat_template takes instead of a template."""


def template_of(value: str) -> str:
    """The chat template that data.chat_template names, or the value itself if it is one. Raises ValueError."""
    if "{{" in value or "{%" in value:
        return value
    found = CHAT_TEMPLATES.get(value.strip().lower())
    if found is None:
        raise ValueError(f"{value!r} is neither a Jinja template, nor a file, nor one of {', '.join(CHAT_TEMPLATES)}")
    return found


@dataclass(frozen=True)
class Family:
    name: str
    title: str
    model_types: tuple[str, ...] = ()
    """`model_type` in config.json; `architectures` names the model where that is absent."""
    architectures: tuple[str, ...] = ()
    lora_targets: tuple[str, ...] = ()
    """Names of the linear layers; empty: every linear layer but the output head."""
    engines: tuple[Engine, ...] = ("fused", "unsloth", "peft")
    """Engines that can train it, the preferred one first; `fused` needs a GPU."""
    why: str = ""
    """Why the first engine is preferred, or why another is missing."""
    converter: Literal["chatglm", "baichuan"] | None = None
    becomes: str = ""
    """`model_type` of a converted checkpoint."""
    chat_template: str | None = None
    """Jinja, for families whose original tokenizer has no template; saved with the converted tokenizer. <USER> and
    <ASSISTANT> are placeholders for tokens that only the vocabulary names."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens besides the tokenizer's end token that end an answer."""
    positions: Literal["rope", "alibi", "unknown"] = "rope"
    packs: bool = True
    """Whether attention can be restricted to each record of a packed row."""
    unpacked: str = ""
    """Why not, where that is known."""
    masked: str = ""
    """Why plain transformers keeps the records of a packed row apart by a mask of all pairs of tokens."""
    unfused: str = ""
    """Why this model has no fused layers, although others of its family do."""
    unbalanced: str = ""
    """Why no loss of routers can be added; empty: it can, or nothing is known of the model."""
    experts: bool = False
    """Whether this model is a mixture of experts, by its config.json."""


_FAST = "Unsloth has a fast path for this family"

ALIBI = Family(
    name="baichuan-alibi",
    title="Baichuan-13B, Baichuan2-13B",
    model_types=("alibi_llama",),
    architectures=("AlibiLlamaForCausalLM",),
    lora_targets=LLAMA_TARGETS,
    engines=("peft",),
    why="it uses ALiBi positions, and Unsloth's attention takes no ALiBi bias",
    converter="baichuan",
    becomes="alibi_llama",
    chat_template=BAICHUAN_CHAT,
    positions="alibi",
    masked="its attention adds a bias to each score",
)
BAICHUAN = Family(
    name="baichuan",
    title="Baichuan-7B, Baichuan2-7B",
    model_types=("baichuan",),
    architectures=("BaiChuanForCausalLM", "BaichuanForCausalLM"),
    lora_targets=LLAMA_TARGETS,
    why=f"converted to Llama: {_FAST}",
    converter="baichuan",
    becomes="llama",
    chat_template=BAICHUAN_CHAT,
)
CHATGLM2 = Family(
    name="chatglm2",
    title="ChatGLM2-6B",
    model_types=("chatglm",),
    architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    lora_targets=GLM_TARGETS,
    engines=("fused", "peft"),
    why="Unsloth has no path for GLM",
    converter="chatglm",
    becomes="glm",
    chat_template=CHATGLM2_CHAT,
)
CHATGLM3 = Family(
    name="chatglm3",
    title="ChatGLM3-6B",
    lora_targets=GLM_TARGETS,
    engines=("fused", "peft"),
    why="Unsloth has no path for GLM",
    converter="chatglm",
    becomes="glm",
    chat_template=CHATGLM3_CHAT,
    stop_tokens=("<|user|>", "<|observation|>"),
)
ANY = Family(
    name="any",
    title="any other causal model of transformers",
    engines=("peft", "unsloth"),
    why="the model's family is not in the table, and PEFT works with every linear layer",
    positions="unknown",
    packs=False,
)

FAMILIES: tuple[Family, ...] = (
    Family(
        name="llama",
        title="LLaMA 3, 3.1, 3.2",
        model_types=("llama",),
        architectures=("LlamaForCausalLM",),
        lora_targets=LLAMA_TARGETS,
        why=_FAST,
        stop_tokens=("<|eot_id|>", "<|eom_id|>"),
    ),
    Family(
        name="qwen",
        title="Qwen 2, 2.5, 3",
        model_types=("qwen2", "qwen3"),
        architectures=("Qwen2ForCausalLM", "Qwen3ForCausalLM"),
        lora_targets=LLAMA_TARGETS,
        why=_FAST,
        stop_tokens=("<|im_end|>",),
    ),
    Family(
        name="mistral",
        title="Mistral 7B",
        model_types=("mistral",),
        architectures=("MistralForCausalLM",),
        lora_targets=LLAMA_TARGETS,
        why=_FAST,
    ),
    CHATGLM2,
    CHATGLM3,
    Family(
        name="glm",
        title="GLM-4 in transformers' layout",
        model_types=("glm",),
        architectures=("GlmForCausalLM",),
        lora_targets=GLM_TARGETS,
        engines=("fused", "peft"),
        why="Unsloth has no path for GLM",
        stop_tokens=("<|user|>", "<|observation|>"),
    ),
    BAICHUAN,
    ALIBI,
    ANY,
)

_BY_NAME = {family.name: family for family in FAMILIES}
_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}
_BY_ARCHITECTURE = {architecture: family for family in FAMILIES for architecture in family.architectures}


STOP_TOKENS = frozenset(token for family in FAMILIES for token in family.stop_tokens)
"""Tokens at which some family stops."""


def names_module(pattern: str, name: str) -> bool:
    """Whether PEFT takes a pattern of an adapter for a module: it stands for the whole name, or for its last parts."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a model by its parsed config.json, converted or not; `any` if the table does not know it.

    Only `_name_or_path` tells an unconverted ChatGLM3 from ChatGLM2; the converter looks at the other files too.
    """
    marked = _BY_NAME.get(str(config.get(MARKER)))
    if marked:
        return _without_fused(marked, config)
    listed = config.get("architectures")
    listed = listed if isinstance(listed, (list, tuple)) else ()
    names = [str(name) for name in listed if str(name) in _BY_ARCHITECTURE]
    by_name = _BY_ARCHITECTURE[names[0]] if names else ANY
    family = _BY_TYPE.get(str(config.get("model_type")), by_name)
    if family is ANY:
        return _plain(config)
    if family is CHATGLM2 and "chatglm3" in str(config.get("_name_or_path", "")).lower():
        return CHATGLM3
    # Both sizes of Baichuan have the same names; only the rotary models limit their positions in config.json.
    if family is BAICHUAN and "max_position_embeddings" not in config:
        return ALIBI
    return family if family.converter else _without_fused(family, config)  # an original layout has other keys


@dataclass(frozen=True)
class Architecture:
    """Models of the family `any` that were trained with plain transformers and PEFT (tests/beds/architectures.py)."""

    title: str
    model_types: tuple[str, ...]
    unpacked: str = ""
    """Why its records cannot share a row; empty: they can, and losses and gradients stay the same."""
    masked: str = ""
    """Why they need a mask; empty: attention goes by their lengths (train/fused/plain.py)."""
    maskable: bool = True
    """Whether the masks of transformers keep them apart."""
    mixture: bool = False
    """Whether it has experts."""
    balanced: bool = True
    """Whether transformers has a loss that balances the load of its experts."""
    sees: bool = False
    """Whether some of its checkpoints have a part for images."""


_CARRIES = "layers without attention carry what they read from one record of a row to the next"

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("Llama 4", ("llama4", "llama4_text"), mixture=True, balanced=False, sees=True),
    Architecture("Qwen2-MoE", ("qwen2_moe",), mixture=True),
    Architecture("Qwen3-MoE (30B-A3B, 235B-A22B, 2507)", ("qwen3_moe",), mixture=True),
    Architecture("Qwen3-Next", ("qwen3_next",), _CARRIES, mixture=True),
    Architecture("Qwen3.5", ("qwen3_5", "qwen3_5_text"), _CARRIES, sees=True),
    Architecture("Qwen3.5-MoE", ("qwen3_5_moe", "qwen3_5_moe_text"), _CARRIES, mixture=True, sees=True),
    Architecture("Qwen2.5-VL", ("qwen2_5_vl",), maskable=False, sees=True),  # its positions have three parts
    Architecture("Qwen3-VL", ("qwen3_vl",), sees=True),
    Architecture("Gemma 2", ("gemma2",), masked="its attention caps the scores"),
    Architecture("Gemma 3", ("gemma3", "gemma3_text"), sees=True),
    Architecture("Gemma 4", ("gemma4", "gemma4_text"), balanced=False, sees=True),  # one of them has experts
    Architecture("Phi-3, Phi-4", ("phi3",)),
    Architecture("Ministral", ("ministral",)),
    Architecture("Ministral 3", ("ministral3",)),
    Architecture("Mistral Small 3", ("mistral3",), sees=True),
    Architecture("Mixtral", ("mixtral",), mixture=True),
    Architecture("GLM-4-0414", ("glm4",)),
    Architecture("GLM-4.5-Air, GLM-4.6", ("glm4_moe",), mixture=True, balanced=False),
    Architecture("GLM-4.7-Flash", ("glm4_moe_lite",), mixture=True, balanced=False),
    Architecture("gpt-oss", ("gpt_oss",), "transformers gives its attention no mask between records", mixture=True),
    Architecture("DeepSeek V2", ("deepseek_v2",), mixture=True, balanced=False),
    Architecture("DeepSeek V3, R1", ("deepseek_v3",), mixture=True, balanced=False),
    Architecture("SmolLM3", ("smollm3",)),
    Architecture("Granite 3", ("granite",)),
    Architecture("Granite 3 MoE", ("granitemoe",), mixture=True, balanced=False),
    Architecture("Granite 4", ("granitemoehybrid",), _CARRIES, mixture=True, balanced=False),
    Architecture("Hunyuan", ("hunyuan_v1_dense",)),
    Architecture("Hunyuan-MoE (A13B)", ("hunyuan_v1_moe",), mixture=True, balanced=False),
    Architecture("ERNIE 4.5", ("ernie4_5",)),
    Architecture("ERNIE 4.5 MoE", ("ernie4_5_moe",), mixture=True),
    Architecture("Seed-OSS", ("seed_oss",)),
    Architecture("Command R", ("cohere",)),
    Architecture("Command R7B, Command A", ("cohere2",)),
    Architecture("OLMo 3", ("olmo3",)),
    Architecture("EXAONE 4", ("exaone4",)),
    Architecture("LFM2", ("lfm2",), _CARRIES),
    Architecture("GPT-NeoX, Pythia", ("gpt_neox",)),
)
_ARCHITECTURE_OF = {model_type: one for one in ARCHITECTURES for model_type in one.model_types}
_UNMEASURED = "this model has no fused layers, and Unsloth was not measured to be faster with it"


def _plain(config: Mapping[str, Any]) -> Family:
    """The family `any` with what is known of the model's architecture."""
    found, experts = _ARCHITECTURE_OF.get(str(config.get("model_type"))), has_experts(config)
    if found is None:
        return replace(ANY, experts=True) if experts else ANY
    masked = found.masked or ("its attention has dropout" if _has_dropout(config, "attention_dropout") else "")
    unpacked = found.unpacked or ("" if found.maskable else masked)
    fused = str(config.get("model_type")) in FUSED_TYPES
    unfused = unfused_reason(config) if fused else ""
    return replace(
        ANY,
        title=found.title,
        why=_UNMEASURED,
        engines=("fused", *ANY.engines) if fused and not unfused else ANY.engines,
        unfused=unfused,
        packs=not unpacked,
        unpacked=unpacked,
        masked=masked,
        experts=experts,
        unbalanced=_NO_EXPERTS if not experts else _NO_BALANCE * (not found.balanced),
    )


_NO_EXPERTS = "it has no experts"
_NO_BALANCE = "transformers computes no such loss for it"


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Keys of config.json that say how many experts a layer has."""


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a model is a mixture of experts."""
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    return any(isinstance(text.get(key), (int, list)) and text[key] not in (0, 1, []) for key in EXPERTS)


def of_type(model_type: str) -> Family:
    """The family of a `model_type` (after conversion), for callers without a config.json."""
    return _BY_TYPE.get(model_type, ANY)


def _without_fused(family: Family, config: Mapping[str, Any]) -> Family:
    """Remove the fused engine from the family if the fused layers do not support this config.json."""
    reason, family = unfused_reason(config), replace(family, unbalanced=_NO_EXPERTS)
    if not reason or "fused" not in family.engines:
        return family
    return replace(family, engines=tuple(engine for engine in family.engines if engine != "fused"), unfused=reason)


def unfused_reason(config: Mapping[str, Any]) -> str:
    """Return why the fused layers do not support a model with this config.json, or an empty string."""
    text = config.get("text_config")
    config = text if isinstance(text, Mapping) else config
    scalings = {one.get("rope_type", one.get("type")) for one in _scalings(config)}
    usual = "gelu_pytorch_tanh" if str(config.get("model_type")).startswith("gemma") else "silu"
    activation = config.get("hidden_activation") or config.get("hidden_act") or usual
    checks = (
        (activation != usual, f"its activation is not {usual}"),
        (bool(config.get("mlp_bias") or config.get("use_bias")), "its MLP has biases"),
        (_has_dropout(config), "its layers have dropout"),
        (bool({"dynamic", "longrope", "su"} & scalings), "its rotary embedding depends on length"),
        (
            any(config.get(name) is not None for name in ("attn_logit_softcapping", "final_logit_softcapping")),
            "it caps scores or logits",
        ),
        (bool(config.get("use_bidirectional_attention")), "its tokens see later ones"),
    )
    return next((reason for failed, reason in checks if failed), "")


_DROPOUTS = ("attention_dropout", "residual_dropout", "resid_pdrop", "embd_pdrop")


def _has_dropout(config: Mapping[str, Any], *names: str) -> bool:
    """Whether layers have dropout of these names; none: of any."""
    text = config.get("text_config")
    config = text if isinstance(text, Mapping) else config
    unsaid = 0.1 if config.get("model_type") == "seed_oss" else 0.0  # transformers' defaults
    usual = dict.fromkeys(("attention_dropout", "residual_dropout"), unsaid)
    return any(config.get(name, usual.get(name)) for name in names or _DROPOUTS)


def needs_conversion(config: Mapping[str, Any]) -> bool:
    """Whether transformers cannot read the checkpoint because it is in an original layout."""
    if config.get(MARKER) or config.get("model_type") == "alibi_llama":
        return False
    return family_of(config).converter is not None


_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
"""Names of the number of positions in config.json; GPT-2, MPT, the first LLaMA and ChatGLM have their own."""


def max_positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model can see at once, by its config.json; None: no limit is known.

    A scaled RoPE has more positions than were trained. As in vLLM, `linear` and `dynamic` multiply the number, `yarn`
    multiplies the original one, and for the other kinds the number in config.json is scaled already.
    """
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    named = [name for name in _POSITIONS if isinstance(config.get(name), int)]
    alibi = config.get("alibi") or config.get("position_embedding_type") == "alibi"
    if not named or alibi or family_of(config).positions == "alibi" or config.get("model_type") == "bloom":
        return None
    found = int(config[named[0]])
    for scaling in _scalings(config):
        kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
        if not isinstance(factor, (int, float)) or str(config.get("model_type")).startswith("gemma3"):
            continue
        if kind in ("linear", "dynamic"):
            return round(found * factor)
        if kind == "yarn":
            return max(found, round(factor * (scaling.get("original_max_position_embeddings") or found)))
    return found


def with_rope(config: Mapping[str, Any], kind: str, factor: float | str, max_length: int) -> Mapping[str, Any]:
    """config.json with its rotary embedding scaled as model.rope_scaling says; `factor` may be "auto".

    The keys are those of transformers 5. Raises ValueError with the reason why this model's cannot be scaled.
    """
    if kind == "none":
        return config
    text = config.get("text_config")
    own = dict(text) if isinstance(text, Mapping) else dict(config)
    positions = max_positions(config)
    scaled = {str(one.get("rope_type", one.get("type", "default"))) for one in _scalings(own)} - {"default"}
    if config.get(MARKER) or family_of(config).positions == "alibi":
        raise ValueError("only checkpoints in transformers' own layout with rotary embeddings can be scaled")
    if scaled:
        raise ValueError(f"the rotary embedding in its config.json is scaled already: {', '.join(sorted(scaled))}")
    parameters = {**(own.get("rope_parameters") or {})}
    if any(isinstance(value, Mapping) for value in parameters.values()) or "mrope_section" in str(own):
        raise ValueError("its layers have several rotary embeddings")
    if positions is None:
        raise ValueError("its config.json does not say how many positions it has")
    found = float(math.ceil(max_length / positions)) if isinstance(factor, str) else float(factor)
    if found <= 1:
        raise ValueError(f"its {positions} positions are enough for data.max_length={max_length}")
    if own.get("rope_theta") is not None:
        parameters.setdefault("rope_theta", own["rope_theta"])
    parameters |= {"rope_type": kind, "factor": found}
    if kind in ("yarn", "llama3"):
        parameters["original_max_position_embeddings"] = positions
    if kind == "llama3":  # those of Llama 3.1
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        own["max_position_embeddings"] = round(positions * found)
    own |= {"rope_parameters": parameters, "rope_scaling": None}
    return {**config, "text_config": own} if isinstance(text, Mapping) else own


def _scalings(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The dictionaries that scale RoPE: transformers 5 has one, or one per kind of layer, as `rope_parameters`."""
    found = [config.get("rope_scaling"), config.get("rope_parameters")]
    found += [value for one in found if isinstance(one, Mapping) for value in one.values()]
    return [one for one in found if isinstance(one, Mapping)]

"""Write the files that are made from the schema of a job and from the commands: `make reference`.

A test fails while one of them is stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from launcher.cli import COMMANDS, cli
from launcher.commands.keys import flags
from launcher.job.reference import json_schema, peer_words
from launcher.job.reference.key_reference import Key, accepted_in_chinese, keys
from launcher.job.reference.key_table import PEERS, SECTIONS
from launcher.machine.language.error_codes import AREAS, CODES
from launcher.machine.language.help_page import HelpPage
from train import compat, families
from train.families import Family

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100
"""Columns of the help of a command."""


class Words(NamedTuple):
    """The words of a page about keys, in one language."""

    head: str
    default: str
    option: str
    example: str
    elsewhere: str
    names: str
    no_key: str


ENGLISH = Words(
    """# The keys of a job

*Made from the schema by `make reference`; changes belong there.* [中文](job.zh-CN.md)

Every key is optional. `zlaunch init` writes a short job file, `zlaunch init --full` one with every key.
`--set train.epochs=3` sets any key on the command line, and `--sweep lora.r=8,16` trains once per value.
`zlaunch keys PATTERN` searches this page in the terminal, also by the names of other programs below. An editor with a
YAML language server completes and checks keys by the schema that the first line of a new job file names.
""",
    "default", "option", "example", "Elsewhere",
    """## Names in other programs

What Transformers has, TRL, LLaMA-Factory and ms-swift have too. The last column says what a value becomes where it
cannot be copied.

| name | programs | key | differs |
|---|---|---|---|
""",
    """## Words without a key of their own

| word | key | why, or what differs |
|---|---|---|
""",
)  # fmt: skip
CHINESE = Words(
    """# 作业的键

*由 `make reference` 根据 schema 生成；请在那里修改。* [English](job.md)

所有键都可省略。`zlaunch init` 写出简短的作业文件，`zlaunch init --full` 写出全部的键。命令行上用 `--set train.epochs=3`
设置任何键，用 `--sweep lora.r=8,16` 对每个值训练一次。`zlaunch keys 词` 在终端中搜索本页，也可以用下面其他程序的名称。
带 YAML 语言服务器的编辑器会按新作业文件首行指明的 schema（`zlaunch schema`）补全并检查各键。
""",
    "默认", "选项", "示例", "其他程序",
    """## 其他程序中的名称

Transformers 的名称也是 TRL、LLaMA-Factory 和 ms-swift 的名称。值不能照抄时，最后一列（英文）说明对应的写法。

| 名称 | 程序 | 键 | 差别 |
|---|---|---|---|
""",
    """## 没有对应键的词

| 词 | 键 | 原因或差别 |
|---|---|---|
""",
)  # fmt: skip


def files() -> dict[str, str]:
    """{file relative to the checkout: its text}."""
    return {
        f"templates/{json_schema.FILE}": json_schema.text(),
        "docs/job.md": job_page(chinese=False),
        "docs/job.zh-CN.md": job_page(chinese=True),
        "docs/errors.md": errors_page(chinese=False),
        "docs/errors.zh-CN.md": errors_page(chinese=True),
        "docs/commands.zh-CN.md": commands_page(chinese=True),
        "docs/commands.md": commands_page(),
        "docs/models.md": models_page(),
    }


MODELS = """# Models

*Made from the tables in `train/families.py` and the rules in `train/compat.py` by `make reference`.*

Any causal language model of transformers can be trained. This page says by which engine, and with which settings, as
`train.engine: auto` chooses on a GPU. `zlaunch plan` says it for your job, with the reason of each choice.

## Families with layers of their own

Yi, DeepSeek's distilled models, TinyLlama and SmolLM2 are Llama or Qwen to transformers, and to zlaunch. Tokens per
second on one H100 beside Unsloth stand in [performance.md](performance.md).

{families}
## Further architectures

Where *engines* begins with `fused`, the layers of the families above compute these models too: norms behind attention
and MLP, sliding windows, layers without positions, partly rotated heads, GELU, and factors of scores, logits and the
residual stream. Their losses and gradients equal those of transformers. Checkpoints with dropout (Seed-OSS) or with a
rotary embedding that depends on the length (LongRoPE, as in Phi-4-mini) and the other rows are trained by plain
transformers and PEFT.

A tiny random checkpoint of each row is trained, resumed, evaluated, asked and exported on a CPU by every run of the
test suite; losses and gradients of packed rows are compared with those of single records. `make long` also trains each
row on nf4 and int8 weights, and compares the losses of two ranks under ZeRO-2 and ZeRO-3 with those of one. Unsloth is
taken only if the job says `train.engine: unsloth`, because it was not measured to be faster with them.

{others}
*Packed rows*: attention goes by the lengths of the records, as in the fused layers, so `train.packing: auto` packs on a
GPU; {masked} can be packed by masks of all pairs of tokens, which a job has to name.

*Sees*: the checkpoint has a part for images. Its text model is trained, the rest stays as it is, and exports keep it.

## Mixtures of experts

- LoRA goes on attention, on MLPs and on the weights of all experts. With
  `lora.target_modules: [q_proj, k_proj, v_proj, o_proj]` experts stay frozen; `gate_proj`, `up_proj` and `down_proj`
  name their products. Experts take no `lora.dropout`, `lora.dora` or other `lora.init`: by default they then stay
  frozen, and a job that names them is refused.
- Routers never have LoRA. They stay frozen. `train.router_loss` adds the loss that balances the load of the experts,
  with a weight or with the model's own (`auto`); it acts through the adapters, and is in metrics.jsonl as
  `router_loss`. It is that of transformers, which has it for {balanced}.
- Shared experts and first dense layers have LoRA where PEFT can tell their names from those of experts: in Llama 4,
  Qwen2-MoE, Qwen3.5-MoE and Granite 4. In the others the run says that they stay frozen.
- gpt-oss is published in MXFP4; it is unpacked to 16 bits at loading.
- PEFT adds weight and adapter of all experts of a layer for each pass, so without `train.gradient_checkpointing` the
  experts take their memory twice. `zlaunch plan` counts that.

## Rows longer than the model's positions

`model.rope_scaling: yarn` (or linear, dynamic, llama3) stretches the rotary embedding by `model.rope_factor`, or by
what `data.max_length` needs. zlaunch's own commands load the base model so; a merged export has it in its config.json;
for other programs the start and the adapter's README name the `rope_parameters`. The fused layers take all but
`dynamic`, whose angles depend on the length of the row. Refused: ALiBi, converted checkpoints, models that are scaled
already (Llama 3.1), and those with several rotary embeddings (Gemma 3, those with images). A row has to fit one GPU.

## Measured on a GPU

On 28 November 2026, on one NVIDIA H200 with torch 2.11 and transformers 5.17, a checkpoint of every row (the tests'
tiny ones, in bfloat16, packed where the table says so) was trained for 12 steps, evaluated and loaded again: all of
them learned, and no adapter's logits differed after loading. Tokens per second of random models with LoRA (r 16) on all
linear layers and experts, records of 40 to 1,024 tokens (mean 300), 64 per step:

| model | way | tokens/s |
|---|---|---|
| Gemma 3 4B, text | plain transformers and PEFT, padded rows of like lengths | 6,496 |
| Gemma 3 4B, text | the same, packed by lengths | 12,074 |
| Qwen3-30B-A3B, 12 of its 48 layers | plain transformers and PEFT, padded rows of like lengths | 14,604 |
| Qwen3-30B-A3B, 12 of its 48 layers | the same, packed by lengths | 24,021 |
| SmolLM3 3B | plain transformers and PEFT, packed by lengths | 15,445 |
| SmolLM3 3B | fused | 34,808 |

## Refused

| what | why |
|---|---|
{refused}| `train.router_loss`: {unbalanced} | transformers computes no such loss for them |
| a checkpoint that lacks weights of its architecture | transformers would fill them with random numbers |
| an architecture that transformers lacks (InternLM 3) | it brings code: `model.trust_remote_code: true`; not tested |
| `lora.target_modules` with `gate_proj` but not `up_proj` in a mixture | one weight holds both |
"""
_QUANTIZATIONS = ("nf4", "int8", "fp8")


def models_page() -> str:
    """Every family and architecture with the settings that no rule refuses."""
    heads = {"family": "| models | `model_type` | engines | packed rows | quantized | ZeRO |", "any": ""}
    heads["any"] = "| models | `model_type` | engines | experts | sees | packed rows | quantized | ZeRO |"
    named = [family for family in families.FAMILIES if family.name != families.ANY.name]
    table = [heads["family"], "|---|---|---|---|---|---|", *map(_family_row, named)]
    others = [heads["any"], "|---|---|---|---|---|---|---|---|"]
    for one in families.ARCHITECTURES:
        family = _known(one)
        types = ", ".join(f"`{name}`" for name in one.model_types)
        engines = ", ".join(engine for engine in family.engines if engine != "unsloth")
        marks = f"{engines} | {'yes' if one.mixture else ''} | {'yes' if one.sees else ''}"
        others.append(f"| {one.title} | {types} | {marks} | {_settings(family)} |")
    reasons: dict[str, list[str]] = {}
    for one in families.ARCHITECTURES:
        if one.unpacked:
            reasons.setdefault(one.unpacked, []).append(one.title)
    refused = "".join(f"| packed rows: {', '.join(who)} | {why} |\n" for why, who in reasons.items())
    experts = compat.check(compat.Combination(_known(families.ARCHITECTURES[0]), "peft", "nf4"))[0].reason
    refused += f"| nf4 and int8: mixtures of experts | {experts} |\n"
    mixtures = [one for one in families.ARCHITECTURES if one.mixture]
    balanced, unbalanced = (
        ", ".join(one.title for one in mixtures if one.balanced is is_so) for is_so in (True, False)
    )
    return MODELS.format(
        families="\n".join(table) + "\n",
        others="\n".join(others) + "\n",
        refused=refused,
        balanced=balanced,
        masked=", ".join(one.title for one in families.ARCHITECTURES if one.masked),
        unbalanced=unbalanced,
    )


def _known(one: families.Architecture) -> Family:
    return families.family_of({"model_type": one.model_types[0], **({"num_experts": 8} if one.mixture else {})})


def _family_row(family: Family) -> str:
    kinds = family.model_types or (family.becomes,)
    types = ", ".join(f"`{name}`" for name in kinds)
    return f"| {family.title} | {types} | {', '.join(family.engines)} | {_settings(family)} |"


def _settings(family: Family) -> str:
    """Packed rows, quantizations and ZeRO stages that work with the family."""

    def works(**settings: object) -> bool:
        asked = compat.Combination(family=family, capability=(9, 0), **settings)  # type: ignore[arg-type]
        return not compat.check(asked)

    packs = "yes" if works(packing="pack") else "no"
    quantized = ", ".join(name for name in _QUANTIZATIONS if works(quantization=name)) or "no"
    stages = ", ".join(str(stage) for stage in (1, 2, 3) if works(zero_stage=stage))
    return f"{packs} | {quantized} | {stages}"


def job_page(*, chinese: bool) -> str:
    """Every key by section, then the words of other programs."""
    words = CHINESE if chinese else ENGLISH
    parts, section = [words.head], None
    for key in keys().values():
        if key.section != section:
            section = key.section
            parts.append(f"## {SECTIONS[section][chinese]}\n")
        parts.append(_entry(key, words, chinese=chinese))
    parts.append(words.names + "".join(sorted(_names())))
    rows = sorted((word, key, note) for word, (key, note) in peer_words.OTHERS.items())
    parts.append(words.no_key + "".join(f"| `{word}` | {_code(key)} | {note} |\n" for word, key, note in rows))
    return "\n".join(parts)


def _entry(key: Key, words: Words, *, chinese: bool) -> str:
    accepted = accepted_in_chinese(key) if chinese else key.accepted
    facts = [accepted, f"{words.default} `{key.default_text}`"]
    if flag := flags(key.section).get(key.name):
        facts.append(f"{words.option} `{flag}`")
    facts.append(f"{words.example} `{key.last}: {key.row.example}`")
    text = f"### {key.name}\n\n{key.row.text if chinese else key.text}\n\n{' · '.join(facts)}\n"
    named = ", ".join(f"`{peer.name}` ({_programs(peer.programs)})" for peer in key.peers)
    return text + (f"\n{words.elsewhere}: {named}\n" if named else "")


def _names() -> Iterator[str]:
    for key in keys().values():
        for peer in key.peers:
            note = peer_words.DIFFERENCES.get(peer_words.plain(peer.name), "")
            yield f"| `{peer.name}` | {_programs(peer.programs)} | `{key.name}` | {note} |\n"


def _programs(programs: tuple[str, ...]) -> str:
    return ", ".join(PEERS.get(program, program) for program in programs)


def _code(key: str) -> str:
    return f"`{key}`" if key else ""


def errors_page(*, chinese: bool) -> str:
    """What the code of every error means."""
    parts = [CODES_HEAD[chinese]]
    for area, title in AREAS.items():
        parts.append(f"## {title[chinese]}\n")
        for code, texts in CODES.items():
            if code.split("-")[1] == area:
                text = texts.chinese if chinese else texts.english
                parts.append(f"### {code}\n\n**{text.title}**\n\n{text.means}\n\n{DO[chinese]}{text.do}\n")
    return "\n".join(parts)


CODES_HEAD = (
    """# Errors by code

*Made from `launcher/machine/language/error_codes.py` by `make reference`.* [中文](errors.zh-CN.md)

An error that you can mend is printed as `error[ZL-DATA-02]: ...`, with an arrow before what to do. The code is its
kind. `zlaunch explain ZL-DATA-02` prints the paragraph below. A traceback without `error` is a bug of ours.
""",
    """# 错误代码

*由 `make reference` 根据 `launcher/machine/language/error_codes.py` 生成。* [English](errors.md)

你可以解决的错误显示为 `错误[ZL-DATA-02]：……`，箭头之后是该怎么办。方括号中的代码是错误的种类。
`zlaunch explain ZL-DATA-02` 打印下面对应的一段。没有“错误”二字的 traceback 是我们的缺陷。
""",
)
DO = ("What to do: ", "怎么办：")
COMMANDS_HEAD = (
    "# Commands\n\n*Made from the help of the commands by `make reference`; changes belong there.* "
    "[中文](commands.zh-CN.md)\n",
    "# 命令\n\n*由 `make reference` 根据各命令的帮助生成；请在那里修改。* [English](commands.md)\n",
)


def commands_page(*, chinese: bool = False) -> str:
    """The help of every command."""
    parts = [COMMANDS_HEAD[chinese]]
    root = click.Context(cli, info_name="zlaunch")
    before, click.Context.formatter_class = click.Context.formatter_class, HelpPage if chinese else click.HelpFormatter
    try:
        for name in COMMANDS:
            command = cli.get_command(root, name)
            assert command is not None
            parts += _helps(command, click.Context(command, root, name, **SETTINGS), level=2)
    finally:
        click.Context.formatter_class = before
    return "\n".join(parts)


SETTINGS = {"help_option_names": ["-h", "--help"], "terminal_width": WIDTH, "max_content_width": WIDTH}


def _helps(command: click.Command, context: click.Context, *, level: int) -> Iterator[str]:
    yield f"{'#' * level} {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            member = command.get_command(context, name)
            assert member is not None
            yield from _helps(member, click.Context(member, context, name, **SETTINGS), level=level + 1)


if __name__ == "__main__":
    for name, text in files().items():
        (ROOT / name).write_text(text, encoding="utf-8")

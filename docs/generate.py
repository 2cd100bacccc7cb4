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
    """# 任务的键

*由 `make reference` 根据 schema 生成；请在那里修改。* [English](job.md)

所有键都可省略。`zlaunch init` 写出简短的任务文件，`zlaunch init --full` 写出全部的键。命令行上用 `--set train.epochs=3`
设置任何键，用 `--sweep lora.r=8,16` 对每个值训练一次。`zlaunch keys 词` 在终端中搜索本页，也可以用下面其他程序的名称。
带 YAML 语言服务器的编辑器会按新任务文件首行指明的 schema（`zlaunch schema`）补全并检查各键。
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
        "docs/commands.md": commands_page(),
    }


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


def commands_page() -> str:
    """The help of every command."""
    parts = ["# Commands\n\n*Made from the help of the commands by `make reference`; changes belong there.*\n"]
    root = click.Context(cli, info_name="zlaunch")
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        parts += _helps(command, click.Context(command, root, name, **SETTINGS), level=2)
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

"""A job file with comments, made from the schema: what `zlaunch init` writes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from launcher.job.reference.key_reference import Key, choices_of, keys, value_text
from launcher.job.reference.key_table import SECTIONS

SHORT = (
    "name",
    "model.path", "model.quantization",
    "data.train", "data.eval", "data.max_length",
    "lora.r", "lora.alpha", "lora.target_modules",
    "train.epochs", "train.learning_rate", "train.global_batch_size", "train.micro_batch_size",
    "train.checkpoint_every", "train.seed", "train.report_to",
    "eval.every",
    "local.gpus",
)  # fmt: skip
"""Keys that stand in a new job file whatever is known of it."""
WIDTH = 80
_COLUMN = 32
"""Where comments beside a value begin."""

HEAD = """\
# A zlaunch job. Every key is optional; `zlaunch keys` explains them all.
# The command line sets any key: zlaunch local job.yaml --set train.epochs=1
"""
HEAD_CHINESE = """\
# zlaunch 的作业文件。每个键都可省略；`zlaunch keys` 说明全部的键。
# 在命令行上可以设置任何键：zlaunch local job.yaml --set train.epochs=1
"""


def commented(
    values: Mapping[str, Any],
    *,
    full: bool = False,
    notes: Mapping[str, str] | None = None,
    schema: str = "",
    head: str | None = None,
    chinese: bool = False,
    wrap: Callable[[str, int], list[str]] | None = None,
) -> str:
    """The text of a job file with these values by dotted key, the keys of SHORT, and a comment for each key.

    `full`: name every other key too, as a comment with its default. `notes`: comments in place of the schema's, by key.
    `schema`: file or address of the JSON Schema, for editors. `chinese`: the comments, broken into lines by `wrap`.
    """  # fmt: skip
    lines = [f"# yaml-language-server: $schema={schema}"] if schema else []
    lines += (head or (HEAD_CHINESE if chinese else HEAD)).splitlines()
    section = ""
    for key in keys().values():
        is_set = key.name in values or key.name in SHORT
        if (not is_set and not full) or key.name == "program":
            continue
        if key.section != section:
            section = key.section
            lines += ["", f"{section}:".ljust(_COLUMN) + f"# {SECTIONS[section][chinese]}"] if section else [""]
        value = values.get(key.name, key.default)
        comment = (notes or {}).get(key.name)
        if comment is None:
            comment = comment_of(key, value, chinese=chinese)
        lines += _lines(key, value, comment, off=not is_set)
    return "\n".join(lines) + "\n"


def _lines(
    key: Key, value: Any, comment: str, *, off: bool, wrap: Callable[[str, int], list[str]] | None = None
) -> list[str]:
    """The line of a key with its comment beside it, or above it where it is long. `off`: the key is a comment too."""
    indent = "  " if key.section else ""
    line = f"{indent}{'#' if off else ''}{key.last}: {value_text(value)}"
    beside = line.ljust(_COLUMN - 2) + "  # " + comment
    if not comment:
        return [line]
    if len(beside) <= WIDTH and not off:
        return [beside]
    if wrap is not None:
        return [*(f"{indent}# {part}" for part in wrap(comment, WIDTH - len(indent) - 2)), line]
    above = textwrap.wrap(comment, WIDTH - len(indent), initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ",
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return [*above, line]


def comment_of(key: Key, value: Any, *, chinese: bool = False) -> str:
    """What the schema says of the key: its text, the accepted values where the text does not name them, the default."""
    if chinese:
        default = (
            f"默认：{key.default_text}。" if value != key.default and key.default not in (None, "", (), {}) else ""
        )
        return f"{key.row.text}{default}"
    words = [key.text]
    choices = choices_of(key.kind)
    if len(choices) > 1 and not all(word in key.text for word in choices):
        words.insert(0, f"{key.type}.")
    if value != key.default and key.default not in (None, "", (), {}):
        words.append(f"Default: {key.default_text}.")
    return " ".join(words)

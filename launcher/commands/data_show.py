"""The text of `zlaunch data show`: records with the tokens that carry loss in color."""

from __future__ import annotations

from typing import Any

import click


def text(found: dict[str, Any]) -> str:
    return "\n\n".join(_record(record) for record in found["records"])


def _record(record: dict[str, Any]) -> str:
    head = click.style(f"{record['file']}:{record['line']}", bold=True)
    if "problem" in record:
        return f"{head}\nerror: {record['problem']}"
    tokens = record["tokens"]
    shown = "".join(click.style(token["text"], fg="green") if token["loss"] else token["text"] for token in tokens)
    keys = "; ".join(f"{label}: {', '.join(names)}" for label, names in _keys(record).items() if names)
    trained = sum(token["loss"] for token in tokens)
    return f"{head}  {len(tokens):,} tokens, {trained:,} with loss (green)  {keys}\n{shown}"


def _keys(record: dict[str, Any]) -> dict[str, list[str]]:
    return {"read": record["honoured"], "ignored": record["ignored"]}

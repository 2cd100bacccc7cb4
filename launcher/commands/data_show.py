"""The text of `zlaunch data show`: records with the tokens that carry loss in color."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from launcher.machine.output import printable


def text(found: dict[str, Any]) -> Text:
    return Text("\n\n").join(_record(record) for record in found["records"])


def _record(record: dict[str, Any]) -> Text:
    shown = Text().append(printable(f"{record['file']}:{record['line']}"), style="bold")
    if "problem" in record:
        return shown.append(printable(f"\nerror: {record['problem']}"))
    tokens = record["tokens"]
    keys = "; ".join(f"{label}: {', '.join(names)}" for label, names in _keys(record).items() if names)
    trained = sum(token["loss"] for token in tokens)
    shown.append(printable(f"  {len(tokens):,} tokens, {trained:,} with loss (green)  {keys}\n"))
    for token in tokens:
        shown.append(printable(token["text"]), style="green" if token["loss"] else None)
    return shown


def _keys(record: dict[str, Any]) -> dict[str, list[str]]:
    return {"read": record["honoured"], "ignored": record["ignored"]}

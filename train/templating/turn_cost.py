"""What it costs in text that a chat template makes one sequence per answer, measured without a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from train.records.conversations import Record
from train.templating.chat_template import ChatTemplate, TemplateRefusal


class TurnCost(NamedTuple):
    records: int
    sequences: int
    times: float
    """Characters of all sequences, over those of one sequence per conversation."""


def measure(template: ChatTemplate, records: Iterable[Record]) -> TurnCost:
    """Render records as training does. Records that the template refuses count for nothing."""
    count = sequences = characters = joined = 0
    for record in records:
        try:
            found = template.sequences(record.messages, record.details)
        except TemplateRefusal:
            continue
        sizes = [rendered.spans[-1][1] for rendered in found]
        count += 1
        sequences += len(sizes)
        characters += sum(sizes)
        joined += max(sizes)
    return TurnCost(count, sequences, characters / joined if joined else 1.0)


def template_of_model(folder: Path, turns: str, own: str | None = None) -> ChatTemplate | None:
    """The job's `own` template or that of a model's files, with the model's special tokens; None: there is none."""
    settings = _read(folder / "tokenizer_config.json")
    file = folder / "chat_template.jinja"
    source = own or (file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template"))
    if isinstance(source, list):  # several by name
        source = next((item["template"] for item in source if item.get("name") == "default"), None)
    if not isinstance(source, str):
        return None
    named = {name: value for name, value in settings.items() if name.endswith("_token") and value}
    specials = {name: value["content"] if isinstance(value, Mapping) else value for name, value in named.items()}
    return ChatTemplate(source, specials, turns)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""Compare the prompts of an export with those of training, on conversations of every kind, and record them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from train.answers.trained import TrainedAdapter
from train.data.prompts import as_messages, render, template_facts
from train.data.recipe import Recipe
from train.data.tokenizer import Tokenizer
from train.errors import UserError

Turns = Sequence[tuple[str, str]]
NAME = "export.json"
_MULTI: Turns = (
    ("user", "Hello!"),
    ("assistant", "Hello."),
    ("user", "天气怎么样？"),
    ("assistant", "很好"),
    ("user", "1+1?"),
)


def probes(system: str | None) -> list[Turns]:
    said = ("system", system or "Answer briefly.")
    return [_MULTI[:1], (said, *_MULTI[:1]), _MULTI, (said, *_MULTI)]


def prompt_ids(tokenizer: Any, turns: Turns) -> list[int]:
    """What the chat template of transformers' `tokenizer` asks with, as servers use it."""
    text = render(tokenizer, turns, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def record(
    adapter: TrainedAdapter,
    kind: str,
    place: Path,
    tokenizer: Any,
    ask: Callable[[Any, Turns], list[int]] = prompt_ids,
    limits: Sequence[str] = (),
) -> None:
    """Write export.json. `tokenizer` is that of training; `ask` gives an exported tokenizer's prompt.

    Raises UserError if a prompt differs from that of training.
    """
    from transformers import AutoTokenizer

    exported = AutoTokenizer.from_pretrained(place)
    own = Tokenizer(Recipe.of(tokenizer, max_length=2**31 - 1))
    prompts = []
    for turns in probes(adapter.config.data.system):
        trained = own.trained_prompt(turns)
        if trained is None:  # a template for other conversations, for example without system messages
            continue
        given = ask(exported, turns)
        if given != trained:
            raise UserError(
                f"the export would ask otherwise than training did: {exported.decode(given)!r} instead of "
                f"{exported.decode(trained)!r}",
                "export --to adapter, and use zlaunch generate or chat",
                code="ZL-EXPORT-02",
            )
        prompts.append({"messages": as_messages(turns), "trained_ids": trained, "prompt_ids": given, "agree": True})
    facts = {
        "schema": 1,
        "kind": kind,
        "run": adapter.config.run_id,
        **template_facts(exported),
        "prompts": prompts,
        "agree": True,
        "limits": list(limits),
    }
    (place / NAME).write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

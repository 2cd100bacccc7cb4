"""The page of the form: its fields in three steps, those that matter first and the rest behind "more"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from launcher import __version__
from launcher.job.reference.key_reference import keys, range_in_chinese
from launcher.job.reference.key_table import SECTIONS
from launcher.lifecycle.forecast import GPU_TITLES
from launcher.show.page import html
from launcher.web.new_run.schema_form import AT_FIRST, BACKENDS, STEPS, Field, fields

EXAMPLES = {
    "model.path": "Qwen/Qwen3-8B",
    "data.train": "data/train.jsonl",
    "data.eval": "data/eval.jsonl",
    "ssh.hosts": "node1, node2",
    "slurm.gpus_per_node": "8",
}
"""Shown in empty fields."""
WIDE = ("model.path",)


def text(
    values: Mapping[str, str],
    backend: str,
    *,
    source: str = "",
    problem: str = "",
    suggestions: Mapping[str, list[str]] | None = None,
) -> str:
    """The page with these texts in its fields. `source`: where they are from; `problem`: why they are not there."""
    page = {
        "title": "",
        "version": __version__,
        "texts": values,
        "backend": backend if backend in BACKENDS else BACKENDS[0],
        "source": source,
        "problem": problem,
        "steps": {step: _step(step) for step in STEPS},
        "gpus": GPU_TITLES,
        "examples": EXAMPLES,
        "wide": WIDE,
        "suggestions": suggestions or {},
    }
    return html.render("new.html", page, {}, live=True, more=("new.js", "new.css"))


def _step(step: str) -> dict[str, Any]:
    """The fields of a step: those at first, and the others by section."""
    here = [field for field in fields().values() if field.step == step]
    sections = list(dict.fromkeys(field.section for field in here))
    sections.sort(key=lambda section: (section == "", section in BACKENDS))
    groups = [(section, [field for field in here if field.section == section]) for section in sections]
    return {
        "first": [_shown(field) for field in sorted(filter(_at_first, here), key=lambda one: AT_FIRST.index(one.key))],
        "more": [
            {
                "title": SECTIONS.get(section, (section, section)),
                "backend": section if section in BACKENDS else "",
                "fields": [_shown(field) for field in found if not field.at_first],
            }
            for section, found in groups
            if not all(field.at_first for field in found)
        ],
    }


def _at_first(field: Field) -> bool:
    return field.at_first


def _shown(field: Field) -> dict[str, Any]:
    key = keys()[field.key]
    return {
        "key": field.key,
        "kind": field.kind,
        "default": field.default,
        "choices": field.choices,
        "backend": field.backend,
        "range": html.pair(str(key.range), range_in_chinese(key.range)) if key.range else "",
        "label": (key.label, key.row.chinese),
        "help": html.pair(_code(key.text), _code(key.row.text)),
    }


def _code(words: str) -> Markup:
    """Text with its `code` marked, and nothing else of it taken for markup."""
    parts = re.split(r"`([^`]*)`", words)
    made = Markup("")
    for number, part in enumerate(parts):
        made += Markup("<code>{}</code>").format(part) if number % 2 else Markup("{}").format(part)
    return made

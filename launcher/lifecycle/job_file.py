"""Which job file a command reads, and a new one for the user to change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.job.load import parse_set, read_job
from launcher.job.spec import Job
from launcher.machine import installation


def load_job(
    file: Path | None, *, overrides: Iterable[str] = (), flags: Mapping[str, Any] | None = None, smoke: bool = False
) -> Job:
    """The job to run: `file`, or job.yaml of the working directory, or the demo job; then flags and overrides.

    Flags about what is trained never change the demo: with them and no file, the job is what they say. A smoke run
    keeps the target settings of a named job and replaces what is trained. Raises SpecError.
    """
    overlay = installation.path("templates") / "smoke.yaml" if smoke else None
    overrides = tuple(overrides)
    if file is None and not smoke and not (flags or {}).get("program"):
        given = [key for key, value in (flags or {}).items() if value is not None]
        given += [parse_set(text)[0] for text in overrides]
        if Path("job.yaml").exists():
            file = Path("job.yaml")
        elif not any(key.partition(".")[0] in TRAINED for key in given):
            file = demo_job()
    return read_job(file, overrides, flags, overlay=overlay)


TRAINED = ("model", "data", "lora", "train", "eval")
"""Sections of a job about what is trained. The others say where and how."""


def demo_job() -> Path:
    """The job file of the demo that ships with zlaunch."""
    return installation.path("templates") / "demo" / "job.yaml"


def commented_job(model: str, *, full: bool = False, chinese: bool = False) -> str:
    """A job file that explains its keys, for the model of that hub id or directory; `full`: with every key."""
    from launcher.job.reference import commented, json_schema

    values = {"name": "my-run", "model.path": model, "data.train": "data/train.jsonl", "train.epochs": 3.0}
    notes = {
        "data.train": 'Records, one per line: {"instruction": ..., "input": ..., "output": ...} or {"messages": [...]}.'
        " Paths are relative to this file.",
        "data.eval": "Held-out records in the same form. Their loss and answers are measured.",
    }
    schema = address(json_schema.FILE)
    if not chinese:
        return commented.commented(values, full=full, notes=notes, schema=schema)
    from launcher.machine.language.help_page import wrapped

    notes = {
        "data.train": '记录文件，每行一条：{"instruction": ..., "input": ..., "output": ...} 或 '
        '{"messages": [...]}。路径相对于本文件。',
        "data.eval": "同样格式的留出记录：测量损失，并让模型作答。",
    }
    return commented.commented(values, full=full, notes=notes, schema=schema, chinese=True, wrap=wrapped)


def imported_job(source: str, gpus: int | None, *, full: bool = False) -> tuple[str, list[str]]:
    """(a job file made of another program's file or command, what to report of it). Raises SpecError."""
    from launcher.job.importing import imported_file, recognize
    from launcher.job.reference import json_schema

    draft = recognize.read(source, gpus)
    schema = address(json_schema.FILE)
    text = imported_file.text(draft, imported_file.title_of(source), schema=schema, full=full)
    return text, list(imported_file.report(draft))


def address(template: str) -> str:
    """A file of the templates as an editor's comment names it: its path, or its address if the path has blanks."""
    path = installation.path("templates") / template
    return str(path) if re.fullmatch(r"[\w./+@-]+", str(path), re.ASCII) else path.as_uri()

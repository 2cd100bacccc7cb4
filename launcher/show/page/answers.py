"""The answers of a run to the held-out records, as rows of the page."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from launcher.rundir.directory import RunDir
from launcher.rundir.jsonl import read_jsonl


def read(file: Path) -> list[dict[str, Any]]:
    """{"prompt", "expected", "given", "task", "right", "before"?} per record of a predictions.jsonl."""
    return [row(line) for line in read_jsonl(file)]


def row(line: dict[str, Any]) -> dict[str, Any]:
    """A line with texts for texts, whatever it held; `right` for runs before 0.2.0 is by plain comparison."""
    texts = {key: "" if line.get(key) is None else str(line[key]) for key in ("prompt", "expected", "given")}
    task = None if line.get("task") is None else str(line["task"])
    right = line.get("right")
    if not isinstance(right, bool):
        right = _plain(texts["expected"]) == _plain(texts["given"])
    before = {"before": str(line["before"])} if line.get("before") is not None else {}
    return {**texts, "task": task, "right": right, **before}


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".。")


def sets(run: RunDir) -> list[dict[str, Any]]:
    """[{"name", "rows"}]: the held-out records of the run itself (name: null), then each later `zlaunch eval`."""
    found: list[dict[str, Any]] = [{"name": None, "rows": read(run.predictions)}]
    for place in sorted(run.evaluations.glob("*/predictions.jsonl")):
        found.append({"name": place.parent.name, "rows": read(place)})
    return [one for one in found if one["rows"]]

"""What trackers get of a run, read from its files: the points of its curves, its settings, its scores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

NAMES = {"eval_loss": "eval/loss"}
"""Names of curves; the others are `train/` and the name in metrics.jsonl, as transformers has them."""
NO_CURVE = ("step", "time", "seconds", "records")


class Point(NamedTuple):
    step: int
    time: float
    """Seconds since 1970."""
    values: dict[str, float]

    @property
    def kind(self) -> str:
        return "eval" if "eval/loss" in self.values else "train"


class Curves:
    """The lines of metrics.jsonl that a tracker has not got yet."""

    def __init__(self, file: Path, sent: dict[str, int]) -> None:
        self.file, self.sent = file, sent
        """`sent`: the last step of each kind that the tracker has. A resumed run makes the steps after its checkpoint
        again; the tracker keeps the first."""
        self.offset, self.inode, self.partial = 0, 0, b""

    def new(self) -> Iterator[Point]:
        try:
            with self.file.open("rb") as file:
                status = self.file.stat()
                if status.st_ino != self.inode or status.st_size < self.offset:  # truncated to a checkpoint
                    self.offset, self.inode, self.partial = 0, status.st_ino, b""
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return
        self.offset += len(data)
        *lines, self.partial = (self.partial + data).split(b"\n")
        for line in lines:
            point = point_of(line)
            if point is not None and point.step > self.sent.get(point.kind, -1):
                self.sent[point.kind] = point.step
                yield point


def point_of(line: bytes) -> Point | None:
    """The numbers of a line; None: it was cut off, or holds no curve."""
    try:
        found = json.loads(line)
        step, moment = int(found["step"]), float(found.get("time") or 0)
    except (ValueError, KeyError, TypeError):
        return None
    values = {
        NAMES.get(name, f"train/{name}"): float(value)
        for name, value in found.items()
        if name not in NO_CURVE and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return Point(step, moment, values) if values else None


def read(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def settings_of(run_dir: Path) -> dict[str, Any]:
    """Every setting of the run, as nested objects, with the reasons of the automatic ones.

    Nothing of the plan's `launch`, which holds the token of the run.
    """
    plan, settings = read(run_dir / "plan.json"), read(run_dir / "train.json")
    reasons = {str(item["setting"]): str(item["reason"]) for item in plan.get("reasons") or ()}
    return {**settings, "backend": plan.get("backend"), "reasons": reasons}


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"epochs": 1}} -> {"train.epochs": 1}"""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def scores_of(run_dir: Path, since: float) -> dict[str, float]:
    """The result of the run as numbers; empty where this start (`since` seconds after 1970) has written none."""
    file = run_dir / "result.json"
    try:
        if file.stat().st_mtime < since - 1:
            return {}
    except OSError:
        return {}
    result = read(file)
    evaluations = result.get("eval") or {}
    found = {
        f"{place}/{name}": value
        for when, place in (("before", "before"), ("after", "final"))
        for name, value in ((evaluations.get(when) or {}).items())
    }
    found |= {f"result/{name}": result.get(name) for name in ("loss_first", "loss_last", "seconds", "tokens", "steps")}
    found["result/peak_memory_bytes"] = (result.get("peak_memory_bytes") or {}).get("measured")
    return {name: float(value) for name, value in found.items() if type(value) in (int, float)}


def without_secrets(text: str, environ: Mapping[str, str]) -> str:
    """A foreign text without the secrets of the environment and without passwords in addresses."""
    secret = re.compile(r"(?i)KEY|TOKEN|SECRET|PASSW|CREDENTIAL")
    for value in sorted((v for n, v in environ.items() if secret.search(n) and len(v) >= 6), key=len, reverse=True):
        text = text.replace(value, "***")
    return re.sub(r"(?<=://)[^/\s@]+@", "***@", text)


def on_one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())

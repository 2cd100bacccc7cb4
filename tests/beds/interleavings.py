"""Commands on one run at the same time, in seeded orders, and what must hold whatever the order was."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

COUNT = int(os.environ.get("ZLAUNCH_INTERLEAVINGS", "2"))
"""Seeds per place; `make two-at-once` tries many."""
PROGRAM = (
    'cd "$ZLAUNCH_RUN_DIR"; exec 9>>one; flock -n 9 || touch TWO; plan=$(md5sum plan.json node.sh); sleep %s; '
    '[ "$plan" = "$(md5sum plan.json node.sh)" ] || touch SWAPPED'
)
"""bash: a rank that sees whether a second start of its run lives, and whether its files are exchanged under it."""
CLEAR = ("right now", "cancel it first", "has succeeded", "still queued or running", "was cancelled", "already")
"""One of these stands in the answer of a command that came second."""


@dataclass(frozen=True)
class Answer:
    words: tuple[str, ...]
    code: int
    output: str


def together(
    start: Callable[..., subprocess.Popen[str]], run: str, seed: int, operations: Sequence[Sequence[str]]
) -> list[Answer]:
    """Start some of the operations within a second, in an order and at times by the seed; wait for all."""
    chance = random.Random(seed)
    chosen = [("resume", "--detach"), *chance.choices(operations, k=chance.randint(2, 4))]
    chance.shuffle(chosen)
    running = []
    for operation, *options in chosen:
        words = (operation, *([] if operation == "list" else [run]), *options)
        running.append((words, start(*words)))
        time.sleep(chance.choice([0, 0.05, 0.2, 0.5]))
    outputs = [(words, process, process.communicate(timeout=120)[0]) for words, process in running]
    return [Answer(words, process.returncode, output) for words, process, output in outputs]


def check_answers(answers: Sequence[Answer]) -> None:
    """Every command either did its work or said clearly why not; none showed a traceback."""
    for answer in answers:
        assert "Traceback" not in answer.output, answer
        assert answer.code in (0, 1, 2, 130), answer
        if answer.code:
            assert any(text in answer.output for text in CLEAR), answer


def check_run(place: Path) -> None:
    """No two starts of the run lived at once, and nothing was exchanged under one."""
    assert [name for name in ("TWO", "SWAPPED") if (place / name).exists()] == []

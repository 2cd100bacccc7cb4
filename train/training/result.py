"""result.json and predictions.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from train.answers.comparison import normalize
from train.data.dataset import Part
from train.training.evaluator import Evaluation


def prediction_lines(part: Part, answers: Sequence[str], before: Sequence[str] | None = None) -> str:
    """predictions.jsonl: one object per record. `before`: the answers of the base model.

    `right` is what `accuracy` counts, so that a reader need not compare answers in a way of its own.
    """
    lines = [
        {
            "prompt": record.question,
            "expected": record.answer,
            "given": given,
            "task": record.task,
            "right": normalize(record.answer) == normalize(given),
        }
        for record, given in zip([part.records[place] for place in part.asked], answers, strict=True)
    ]
    if before is not None:
        lines = [{**line, "before": answer} for line, answer in zip(lines, before, strict=True)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def sample_answers(
    part: Part | None, before: Evaluation | None, after: Evaluation | None, count: int
) -> list[dict[str, Any]]:
    """`count` answers for people to read, spread over the whole of data.eval."""
    if part is None or not (before or after):
        return []
    records = [part.records[place] for place in part.asked]
    stride = max(1, len(records) // max(1, count))
    return [
        {
            "prompt": records[place].question,
            "expected": records[place].answer,
            "before": before.answers[place] if before else None,
            "after": after.answers[place] if after else None,
        }
        for place in range(0, len(records), stride)
    ][:count]

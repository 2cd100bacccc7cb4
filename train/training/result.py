"""result.json: evaluations and sample answers."""

from __future__ import annotations

from typing import Any

from train.config import TrainConfig


def evaluation_of(evaluator: Any) -> dict[str, Any] | None:
    """{"scores", "answers"} on rank 0 (a collective)."""
    loss = evaluator.loss()
    answers = evaluator.answers()
    if answers is None:
        return None
    scores = evaluator.scored(answers, loss)
    print(f"evaluation  loss {loss:.4f}  accuracy {scores['accuracy']:.3f}", flush=True)
    return {"scores": scores, "answers": answers}


def samples_of(config: TrainConfig, records: Any, before: Any, after: Any) -> list[dict[str, Any]]:
    """A few answers for people to read, spread over the whole of data.eval."""
    from train.training.evaluator import question

    if not records or not (before or after):
        return []
    stride = max(1, len(records) // max(1, config.eval.samples))
    return [
        {
            "prompt": question(records[place]),
            "expected": records[place].answer,
            "before": before["answers"][place] if before else None,
            "after": after["answers"][place] if after else None,
        }
        for place in range(0, len(records), stride)
    ][: config.eval.samples]

"""Each rule of the verdict over files as a training writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.rundir import reading
from launcher.rundir.picture import Picture
from launcher.rundir.state import RunState
from tests.beds.pictured import Recorded


def falling(step: int) -> float:
    return 4.0 * 0.97**step


def trained(
    root: Path,
    *,
    loss: Any = falling,
    held_out: dict[int, float] | None = None,
    steps: int = 50,
    before: float | None = None,
    after: float | None = None,
    records: int = 64,
    answers: list[dict[str, Any]] | None = None,
    scores: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    state: RunState = RunState.SUCCEEDED,
) -> Picture:
    """The picture of a run with these losses, answers and scores."""
    recorded = Recorded(root).plan().submit().ranks()
    if held_out or after is not None:
        recorded.event("data", part="eval", records=records, **{"measured": records, "in_training": 0, **(data or {})})
    recorded.phase("train", total_steps=steps)
    for step in range(steps + 1):
        if step in (held_out or {}):
            recorded.held_out(step, (held_out or {})[step])
        if step < steps:
            recorded.steps(step + 1, step + 1, loss=loss)
    if answers:
        lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
        recorded.run.write({"predictions.jsonl": "\n".join(lines) + "\n"})
    if state is RunState.SUCCEEDED:
        final = {"loss": after, "records": records, "accuracy": 0.5, **(scores or {})}
        evaluation = {"before": None if before is None else {"loss": before}, "after": final if after else None}
        recorded.result(steps=steps, eval=evaluation).end()
    return reading.read(recorded.run, state, now=recorded.clock)


def rule(picture: Picture) -> str | None:
    return picture.verdict.rule if picture.verdict else None


def choices(expected: list[str], given: list[str], task: str | None = "sentiment") -> list[dict[str, Any]]:
    return [
        {"prompt": "?", "expected": one, "given": two, "task": task} for one, two in zip(expected, given, strict=True)
    ]


def classified(answers: list[dict[str, Any]]) -> dict[str, Any]:
    right = sum(answer["expected"] == answer["given"] for answer in answers) / len(answers)
    task = {"sentiment": {"records": len(answers), "accuracy": right, "macro_f1": 0.3}}
    return {"accuracy": right, "macro_f1": 0.3, "tasks": task}


def test_learned_names_both_losses_and_says_whether_longer_may_help(tmp_path: Path) -> None:
    found = trained(tmp_path, before=4.72, after=1.69, held_out={25: 2.5})
    assert found.verdict is not None
    assert (rule(found), found.verdict.tone) == ("learned", "good")
    assert found.verdict.line == "learned: 4.72 to 1.69 on the held-out records"
    assert "still falling" in found.verdict.reason
    assert found.next_steps[0] == f"zlaunch chat {found.run}"
    assert found.next_steps[-1] == f"zlaunch resume {found.run} --set train.epochs=2"


def test_learned_little(tmp_path: Path) -> None:
    assert rule(trained(tmp_path, before=2.0, after=1.95)) == "learned little"


def test_overfits_since_the_step_with_the_smallest_held_out_loss(tmp_path: Path) -> None:
    held_out = {0: 3.0, 9: 2.0, 20: 2.6, 30: 3.4, 40: 3.9}
    found = trained(tmp_path, held_out=held_out, after=4.0)
    assert found.verdict is not None
    assert found.verdict.line.startswith("overfits since step 9: held-out loss 2.00 to 4.00, training loss ")
    assert "zlaunch resume" not in " ".join(found.next_steps)


def test_overfitting_shows_while_the_run_lasts(tmp_path: Path) -> None:
    held_out = {0: 3.0, 9: 2.0, 20: 2.6, 30: 3.4}
    assert rule(trained(tmp_path, held_out=held_out, steps=35, state=RunState.RUNNING)) == "overfits"


def test_twelve_records_by_heart_overfit_also_where_the_loss_was_measured_once(tmp_path: Path) -> None:
    found = trained(tmp_path, loss=lambda step: 4.0 * 0.9**step, after=5.0, records=12, steps=60)
    assert rule(found) == "overfits"


def test_a_loss_from_before_the_training_is_no_sign_of_overfitting(tmp_path: Path) -> None:
    """A run that was stopped after a few steps has measured the held-out loss only before the first one."""
    found = trained(tmp_path, loss=lambda step: 5.0 * 0.8**step, held_out={0: 5.2}, steps=7, state=RunState.CANCELLED)
    assert found.loss_last is not None
    assert found.loss_last < 1.6
    assert rule(found) is None


def test_noise_of_the_held_out_loss_is_no_overfitting(tmp_path: Path) -> None:
    held_out = {0: 3.0, 10: 2.0, 20: 1.52, 30: 1.5, 40: 1.53}
    assert rule(trained(tmp_path, held_out=held_out, after=1.52)) == "learned"


@pytest.mark.parametrize("loss", [lambda step: 4.7, lambda step: 4.7 + 0.2 * (-1) ** step])
def test_not_learning_names_the_rate(tmp_path: Path, loss: Any) -> None:
    found = trained(tmp_path, loss=loss, before=4.7, after=4.7)
    assert rule(found) == "not learning"
    assert found.verdict is not None
    assert "1.0e-03" in found.verdict.reason


def test_diverged_by_its_failure_and_by_its_loss(tmp_path: Path) -> None:
    assert rule(trained(tmp_path / "a", loss=lambda step: 2.0 + step / 10, before=2.0, after=7.0)) == "diverged"
    recorded = Recorded(tmp_path / "b").plan().submit().ranks().phase("train", total_steps=9).steps(1, 3)
    message = "the loss of step 4 is nan: training has diverged"
    recorded.node(0, "h", [{"rank": 0}], state="FAILED", failure={"cause": "bad_configuration", "message": message})
    found = reading.read(recorded.end("FAILED").run, RunState.FAILED)
    assert found.verdict is not None
    assert found.verdict.line == "diverged: the loss of step 4 is nan"


def test_a_model_that_the_first_steps_ruined_has_diverged_though_its_loss_falls_since(tmp_path: Path) -> None:
    def blown_up(step: int) -> float:
        return 5.9 if step == 1 else 60 - step + 4 * (step % 3)

    found = trained(tmp_path, loss=blown_up, before=61.0, after=30.0)
    assert found.verdict is not None
    assert found.verdict.line.startswith("diverged: the training loss rose from 5.90 to ")


def test_an_easy_first_batch_among_others_is_no_divergence(tmp_path: Path) -> None:
    found = trained(tmp_path, loss=lambda step: 1.0 + (step * 7 % 5) * 0.8, before=2.7, after=2.0)
    assert rule(found) == "learned"


def test_majority_counts_what_always_saying_one_thing_would_give(tmp_path: Path) -> None:
    answers = choices(["yes"] * 30 + ["no"] * 20, ["yes"] * 50)
    found = trained(tmp_path, before=3.0, after=1.0, answers=answers, scores=classified(answers))
    assert found.verdict is not None
    assert found.verdict.line == (
        "no better than the majority class: sentiment: 60% right, and 60% by always saying 'yes'"
    )


def test_a_classification_that_is_clearly_better_than_the_majority_has_learned(tmp_path: Path) -> None:
    answers = choices(["yes"] * 30 + ["no"] * 20, ["yes"] * 28 + ["no"] * 22)
    assert rule(trained(tmp_path, before=3.0, after=1.0, answers=answers, scores=classified(answers))) == "learned"


@pytest.mark.parametrize(("records", "held_out"), [(4, {0: 3.0, 25: 2.0}), (0, None)])
def test_too_few_held_out_records(tmp_path: Path, records: int, held_out: dict[int, float] | None) -> None:
    found = trained(tmp_path, held_out=held_out, after=1.5 if records else None, records=records)
    assert rule(found) == "too few held-out records to judge"
    assert found.verdict is not None
    assert found.verdict.tone == "unknown"


def test_empty_and_endless_answers(tmp_path: Path) -> None:
    empty = choices(["a b c"] * 20, [""] * 12 + ["a"] * 8, task=None)
    found = trained(tmp_path / "a", before=3.0, after=1.0, answers=empty)
    assert found.verdict is not None
    assert found.verdict.line == "answers are empty: 12 of 20"
    endless = trained(tmp_path / "b", before=3.0, after=1.0, scores={"unended": 40})
    assert endless.verdict is not None
    assert endless.verdict.line.startswith("answers never end: 40 of 64")


def test_records_that_are_trained_on_show_nothing(tmp_path: Path) -> None:
    found = trained(tmp_path, before=4.0, after=1.0, data={"in_training": 8})
    assert found.verdict is not None
    assert found.verdict.line == "training and held-out data overlap: 8 of 64 held-out records are training records too"
    assert rule(trained(tmp_path / "b", before=4.0, after=1.0, data={"in_training": 1})) == "learned"


def measured_in_part(root: Path) -> Recorded:
    """A run of thirty steps that has measured 20 of its 500 held-out records three times."""
    recorded = Recorded(root).plan().submit().ranks().phase("train", total_steps=30)
    recorded.event("data", part="eval", records=500, measured=500, in_training=0)
    for step, loss in ((0, 3.0), (15, 2.0), (30, 1.5)):
        recorded._append("metrics.jsonl", {"step": step, "eval_loss": loss, "records": 20, "seconds": 0.1})
        recorded.steps(step + 1, min(step + 15, 30), loss=falling)
    return recorded


def test_losses_on_other_records_are_not_compared(tmp_path: Path) -> None:
    recorded = measured_in_part(tmp_path)
    recorded.result(steps=30, eval={"after": {"loss": 2.9, "records": 500, "accuracy": 0.1}}).end()
    found = reading.read(recorded.run, RunState.SUCCEEDED)
    assert found.verdict is not None
    assert found.verdict.line == "learned: 3.00 to 1.50 on 20 of the held-out records"
    assert [(point.step, point.records) for point in found.held_out] == [(0, 20), (15, 20), (30, 20), (30, None)]


def test_the_verdict_names_the_losses_over_all_records_where_there_are_two(tmp_path: Path) -> None:
    recorded = measured_in_part(tmp_path)
    recorded.result(steps=30, eval={"before": {"loss": 4.0}, "after": {"loss": 2.5, "records": 500}}).end()
    found = reading.read(recorded.run, RunState.SUCCEEDED)
    assert found.verdict is not None
    assert found.verdict.line == "learned: 4.00 to 2.50 on the held-out records"


def test_nothing_is_said_of_a_run_that_goes_well_so_far_or_of_a_program(tmp_path: Path) -> None:
    assert rule(trained(tmp_path, held_out={0: 3.0, 10: 2.0}, steps=20, state=RunState.RUNNING)) is None


def test_scores_say_what_they_average() -> None:
    after = {
        "loss": 1.0, "records": 30, "accuracy": 0.5, "rouge_l": 0.3,
        "tasks": {"qa": {"records": 10, "exact_match": 0.2}, "short": {"records": 12, "rouge_l": 0.2},
                  "long": {"records": 8, "rouge_l": 0.4}},
    }  # fmt: skip
    rows = [(one.metric, one.over, one.records) for one in reading.scores_of({"after": after}) if one.task is None]
    assert rows == [("accuracy", (), 30), ("rouge_l", ("short", "long"), 20), ("loss", (), 30)]

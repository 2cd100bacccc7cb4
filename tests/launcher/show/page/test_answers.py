"""predictions.jsonl as rows, whatever is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.rundir.directory import RunDir
from launcher.show.page import answers


@pytest.mark.parametrize(
    ("expected", "given", "right"),
    [
        ("Yes.", "yes", True),
        ("１２", "12", True),
        ("正面", "正面。", True),
        ("yes", "", False),
        ("a b", "a  b\n", True),
        ("5", "-5", False),
    ],
)
def test_runs_before_0_2_0_are_compared_here(expected: str, given: str, right: bool) -> None:
    assert answers.row({"prompt": "q", "expected": expected, "given": given, "task": None})["right"] is right


def test_the_training_programs_own_judgment_comes_first() -> None:
    assert answers.row({"prompt": "q", "expected": "3.0", "given": "3", "right": True})["right"] is True


def test_a_line_of_other_types_is_text() -> None:
    row = answers.row({"prompt": 3, "expected": None, "given": ["x"], "task": 7, "before": ""})
    assert row == {"prompt": "3", "expected": "", "given": "['x']", "task": "7", "right": False, "before": ""}


def test_later_evaluations_are_further_sets(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "q", "expected": "a", "given": "a"}) + "\n"
    (tmp_path / "evaluations/new").mkdir(parents=True)
    (tmp_path / "evaluations/new/predictions.jsonl").write_text(line)
    (tmp_path / "predictions.jsonl").write_text(line + '{"prompt": "torn')
    assert [(one["name"], len(one["rows"])) for one in answers.sets(RunDir(tmp_path))] == [(None, 1), ("new", 1)]

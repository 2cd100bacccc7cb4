"""Verdicts in Chinese: every number stays, and an unknown text stays as it is."""

from __future__ import annotations

import re

import pytest

from launcher.rundir.verdict import RULES, Rule
from launcher.show.page import verdict_words


@pytest.mark.parametrize(
    "text",
    [
        "learned: 4.72 to 1.69 on the held-out records",
        "overfits since step 9: held-out loss 1.60 to 2.31, training loss 0.02",
        "not learning: the training loss is flat (2.31 to 2.30)",
        "diverged: the training loss rose from 2.10 to 9.87",
        "no better than the majority class: 52% right, and 55% by always saying 'yes'",
        "too few held-out records to judge: 4: 5.71 to 5.49 on the held-out records",
        "answers never end: 60 of 64 are longer than eval.max_new_tokens, and those expected are not",
        "is train.learning_rate too small (1.0e-07)? or does the model know these records already?",
        "the held-out loss was smallest after step 40",
        "training and held-out data overlap: 9 of 64 held-out records are training records too",
    ],
)
def test_a_verdict_is_said_in_chinese_with_its_numbers(text: str) -> None:
    found = verdict_words.in_chinese(text)
    assert re.search("[\u4e00-\u9fff]", found)
    numbers = r"\d[\d.e-]*\d|\d"
    assert sorted(re.findall(numbers, found)) == sorted(re.findall(numbers, text))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_has_a_headline_in_chinese(rule: Rule) -> None:
    assert any(pattern.startswith(rule.name) for pattern, _ in verdict_words.ROWS)


def test_another_text_stays() -> None:
    assert verdict_words.in_chinese("learned: a lot") == "learned: a lot"

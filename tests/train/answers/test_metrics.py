"""Each metric against numbers computed by hand."""

from __future__ import annotations

import sys
from random import Random

import pytest

from train.answers.metrics import bleu, exact_match, kind_of, macro_f1, rouge, score, words


def test_exact_match_counts_only_equal_answers() -> None:
    assert exact_match([("正面", "负面"), ("正面", "正面的"), ("是", "。"), ("对", "对。")]) == 0.25


def test_macro_f1_weighs_labels_equally_and_an_unknown_answer_is_a_miss() -> None:
    pairs = [("正", "正"), ("正", "正"), ("正", "负"), ("负", "负"), ("负", "不知道")]
    positive, negative = 2 * 2 / (2 * 2 + 1), 2 * 1 / (2 * 1 + 2)
    assert macro_f1(pairs) == pytest.approx((positive + negative) / 2)


def test_bleu_counts_chinese_by_characters() -> None:
    assert bleu([("今天天气很好。", "今天天气很好。")]) == pytest.approx(100)
    close, far = bleu([("今天天气很好啊", "今天天气不错啊")]), bleu([("今天天气很好啊", "电影难看")])
    assert 20 < close < 80  # split at blanks, it would be one wrong word
    assert far < 5
    assert bleu([("the cat sat on the mat", "the cat sat on the mat")]) == pytest.approx(100)


def test_rouge_counts_words_of_a_dictionary() -> None:
    """jieba: 我/来到/北京/清华大学 and 我/去/北京/清华大学: 3 of 4 words in common."""
    assert rouge("1")([("我来到北京清华大学", "我去北京清华大学")]) == pytest.approx(0.75, abs=1e-6)
    assert rouge("l")([("我来到北京清华大学", "我去北京清华大学")]) == pytest.approx(0.75, abs=1e-6)
    assert rouge("1")([("我来到北京", ""), ("我来到北京", "我来到北京")]) == pytest.approx(0.5, abs=1e-6)


def test_rouge_equals_that_of_the_library_on_random_sentences() -> None:
    from rouge_chinese import Rouge

    random = Random(5)
    pieces = ["我们", "今天", "去", "北京", "。", "，", "！", "？", "”", "天气", "3.14", "hello"]
    for _ in range(60):
        one, other = ("".join(random.choices(pieces, k=random.randint(1, 40))) for _ in range(2))
        if not words(one) or not words(other):
            continue
        expected = Rouge().get_scores(" ".join(words(other)), " ".join(words(one)))[0]
        for part in "12l":
            assert rouge(part)([(one, other)]) == pytest.approx(expected[f"rouge-{part}"]["f"], abs=1e-6)


@pytest.mark.parametrize(
    ("task", "answers", "kind"),
    [
        ("sentiment", ["正面"], "classification"),
        ("en-zh translation", ["你好"], "translation"),
        ("新闻摘要", ["短"], "text"),
        ("cmrc_qa", ["a b c"], "qa"),
        (None, ["是", "否", "是", "是", "否", "否"], "classification"),
        (None, [f"答案{n}" for n in range(9)], "qa"),
        ("other", ["长" * 60, "文" * 50], "text"),
    ],
)
def test_a_task_has_the_kind_of_its_name_or_its_answers(task: str | None, answers: list[str], kind: str) -> None:
    assert kind_of(task, [(answer, "") for answer in answers]) == kind


def test_scores_are_given_overall_and_by_task() -> None:
    pairs = [("正面", "正面。"), ("负面", "正面"), ("我去北京清华大学", "我去北京清华大学"), ("十二", "十三")]
    scores = score(pairs, ["sentiment", "sentiment", "translation", None])
    assert scores["records"] == 4
    assert scores["accuracy"] == 0.5
    assert scores["tasks"]["sentiment"] == {"records": 2, "accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}
    assert set(scores["tasks"]["translation"]) == {"records", "bleu", "rouge_l"}
    assert scores["bleu"] == pytest.approx(100)
    assert scores["macro_f1"] == pytest.approx(1 / 3)
    assert score([], []) == {"records": 0, "tasks": {}}


def test_a_missing_library_costs_only_its_metric(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    scores = score([("你好世界", "你好世界")], ["translation"])
    assert scores["tasks"]["translation"] == {"records": 1, "rouge_l": pytest.approx(1.0, abs=1e-6)}
    assert "bleu is not measured" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_leaves_the_scores() -> None:
    """JSON has no such number, and result.json is written when all training is done."""
    from types import SimpleNamespace
    from typing import Any

    from train.training.evaluator import Evaluator

    unused: Any = None
    part: Any = SimpleNamespace(asked=[0], records=[SimpleNamespace(answer="yes", task=None)])
    evaluator = Evaluator(unused, unused, part, unused, unused, unused, lambda: False)
    assert evaluator.scored(["yes"], float("nan"))["loss"] is None
    assert evaluator.scored(["yes"], 1.5) == {"loss": 1.5, "records": 1, "accuracy": 1.0, "tasks": {}}

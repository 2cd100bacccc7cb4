"""Which short answers are the same, and which are not."""

from __future__ import annotations

import pytest

from train.answers.comparison import normalize
from train.answers.metrics import exact_match

SAME = [
    ("正面。", "正面", "“正面”！", "**正面**", " 正 面\n", "正面~", "`正面`", "- 正面"),
    ("ＡＢＣ１２", "abc12", "ABC 12."),
    ("。", "。"),
    ("是的，没错", "是的没错", "是的,没错!"),
    ("e-mail", "email", "E-Mail."),
    ("U.S.A.", "USA", "U.S.A"),
    ("A, B", "A、B", "A B", "AB", "A,B。", "A;B"),
    ("don't", "dont"),
    ("1,000", "1000", "１，０００", "1000.00", "+1000", "1,000。"),
    ("3.14", "３．１４", "3.14.", "3.140"),
    ("3", "3.0", "3.00", "３", "3。", "(3)", "**3**"),
    ("-5", "−5", "－5", "-5.0", "–5", "-5。"),
    ("0.5", ".5", "0.50"),
    ("50%", "50％", "50 %", "50.0%", "50%。"),
    ("1/2", "1 / 2", "½", "１／２", "1⁄2"),
    ("1½", "1 1/2"),
    ("1:2", "1 : 2", "1：2", "1∶2"),
    ("12:30", "12：30", "12:30。"),
    ("9:05", "09:05"),
    ("3-5", "3 - 5", "3~5", "3～5", "3–5", "3—5"),
    ("1, 2", "1,2", "1、2", "1 2", "1；2"),
    ("2024-01-02", "2024 01 02", "2024/1/2", "2024.01.02", "2024年1月2日", "2024 年 1 月 2 日"),
    ("10℃", "10°C", "10 ℃", "10.0℃"),
    ("$5", "$5.00", "＄5"),
    ("10²", "10^2"),
    ("H₂O", "H2O"),
    ("C#", "c#", "C＃", "C #", "C#。", "(C#)", "`C#`", "**C#**"),
    ("C++", "c++", "Ｃ＋＋", "C ++"),
    ("a.b", "A.B", "`a.b`"),
    ("x = 1", "x=1"),
    ("答案是3.10", "答案是 3.10。"),
]
DIFFERENT = [
    ("正面", "负面"),
    ("C", "C#", "C++"),
    ("A", "A+", "A-"),
    ("F", "F#"),
    ("5", "-5", "5%", "5‰", "$5", "5°", "5℃", "0.5", "55", "5/5", "5:5"),
    ("12", "1:2", "1/2", "1.2", "1-2", "1,2", "1*2", "1(2)", "2²"),
    ("102", "10²"),
    ("112", "1½", "11/2"),
    ("35", "3-5", "3.5", "3:5"),
    ("1000", "1,00", "1.000,5", "10000"),
    ("1230", "12:30", "12.30"),
    ("314", "3.14"),
    ("py", ".py"),
    ("ab", "a.b", "a_b", "a:b", "a/b", "a(b)", "a[b]", "a*b", "a&b"),
    ("a = b", "a != b", "a == b"),
    ("v", "-v", "*v"),
    ("1e5", "1e-5"),
    ("∞", "-∞"),
    ("5", "5′", "5″"),
    ("kmh", "km/h"),
    ("1", "#1", "1%", "1'"),
    ("Python 3.1", "Python 3.10", "Python 31"),
    ("版本3.1", "版本3.10"),
    ("2024-01-02", "2024-02-01", "20240102"),
    ("x^2", "x2"),
    ("**", "。"),
]


@pytest.mark.parametrize("answers", SAME)
def test_the_same_answer_in_other_writing(answers: tuple[str, ...]) -> None:
    assert {normalize(answer) for answer in answers} == {normalize(answers[0])}
    assert exact_match([(answers[0], answer) for answer in answers]) == 1.0


@pytest.mark.parametrize("answers", DIFFERENT)
def test_other_answers(answers: tuple[str, ...]) -> None:
    assert len({normalize(answer) for answer in answers}) == len(answers)


@pytest.mark.parametrize("answer", [answer for answers in SAME + DIFFERENT for answer in answers])
def test_a_normalized_answer_is_the_same_answer(answer: str) -> None:
    assert normalize(normalize(answer)) == normalize(answer)

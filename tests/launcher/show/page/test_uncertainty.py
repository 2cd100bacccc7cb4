"""Intervals and tests, against published values."""

from __future__ import annotations

import pytest

from launcher.show.page.uncertainty import differ, wilson


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 1, 0.2065, 1),
    ],
)  # 81/263 and 15/148: Newcombe 1998, table I, method 3
def test_the_interval_is_wilsons(right: int, of: int, low: float, high: float) -> None:
    assert wilson(right, of) == pytest.approx((low, high), abs=5e-5)


def test_no_records_have_no_interval() -> None:
    assert wilson(0, 0) is None


def test_runs_differ_by_the_records_that_only_one_answers() -> None:
    both = [True] * 50
    assert differ([*both, *[True] * 6], [*both, *[False] * 6]) == pytest.approx(2 / 2**6)
    assert differ([True, False] * 5, [False, True] * 5) == 1.0
    assert differ(both, both) == 1.0
    assert differ([True] * 3000, [False] * 3000) == 0.0

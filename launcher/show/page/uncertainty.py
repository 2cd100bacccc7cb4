"""How sure a score is: an interval for a share of right answers, and a test whether two runs differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

_Z = 1.959963984540054
"""The 97.5% quantile of the normal distribution, for intervals of 95%."""


def wilson(right: int, of: int) -> tuple[float, float] | None:
    """The 95% interval of a share (Wilson 1927, without continuity correction); None without records.

    Unlike `p ± 1.96 s`, it stays within 0 and 1 and holds for few records and shares near both ends.
    """
    if of <= 0:
        return None
    share = right / of
    middle = share + _Z * _Z / (2 * of)
    half = _Z * math.sqrt(share * (1 - share) / of + _Z * _Z / (4 * of * of))
    whole = 1 + _Z * _Z / of
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def differ(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The probability that two equally good runs differ as much as these do on the same records.

    McNemar's exact test, two-sided: among the records that only one of them answers right, each is a fair coin.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    differing, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(differing, k) for k in range(fewer + 1))
    return min(1.0, tail / 2 ** (differing - 1)) if differing else 1.0

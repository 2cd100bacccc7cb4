"""The rate of a network as people write it: `25Gb`, `100 Gbit/s`, `3.1GB`, `8.96 GiB/s`."""

from __future__ import annotations

import re

_RATE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([KMGT])(i?)(b|bit|bits|bps|B|byte|bytes)(?:/s|ps)?", re.ASCII)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def bytes_per_second(text: str) -> float:
    """The rate in bytes per second: a small `b` counts bits, as network cards are named. Raises ValueError."""
    found = _RATE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected a rate such as 25Gb (bits) or 3.1GB (bytes), got {text!r}")
    number, unit, binary, name = found.groups()
    rate = (
        float(number)
        * float((1024 if binary else 1000) ** _POWERS[unit])
        / (1 if name[0] == "B" or "byte" in name else 8)
    )
    if not rate:
        raise ValueError(f"a network of {text} sends nothing")
    return rate

"""Which records of data.train are held out for data.eval, where that is a share or a number.

A record's own hash decides. So equal records are on one side, whatever source they are in; the choice is that of every
run, on any number of ranks; and an added record leaves all others where they are (of a number, it may replace one).
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from train import config
from train.data.cache import Entry

Bools = npt.NDArray[np.bool_]


class Parts(NamedTuple):
    """[readable records] each: whether it is in this part. Records behind the first ones of a source are in none."""

    trained: Bools
    held: Bools


def parts(entry: Entry, data: config.Data) -> Parts | None:
    """None: data.eval asks for no part of data.train."""
    wanted = data.held_out
    if wanted is None:
        return None
    among = _used(entry, [source.first for source in data.train_sources])
    hashes = _spread(whole_hashes(entry))
    if wanted.number is None:
        bound = np.uint64(wanted.share * 2**64)
    else:
        different = np.unique(hashes[among])
        if wanted.number >= len(different):
            return Parts(np.zeros_like(among), among)
        bound = different[wanted.number]
    below: Bools = hashes < bound
    return Parts(among & ~below, among & below)


def first(held: Bools, records: int | None) -> Bools:
    """The first `records` of the held-out ones; None: all."""
    return held if records is None else held & (np.cumsum(held) <= records)


def whole_hashes(entry: Entry) -> npt.NDArray[np.uint64]:
    """One hash per record of question and answer together."""
    asked, answered = np.asarray(entry.array("asked")), np.asarray(entry.array("answered"))
    mixed: npt.NDArray[np.uint64] = asked * np.uint64(0x9E3779B97F4A7C15) ^ answered
    return mixed


def _used(entry: Entry, limits: list[int | None]) -> Bools:
    """Whether each record is among the first ones of its source that take part."""
    found = np.zeros(sum(entry.meta.records), np.bool_)
    starts = accumulate((0, *entry.meta.records))
    for start, count, most in zip(starts, entry.meta.records, limits, strict=False):
        found[start : start + min(count, most or count)] = True
    return found


def _spread(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mixed once more (splitmix64): a check of a large file draws its sample by the same hashes."""
    mixed = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return found

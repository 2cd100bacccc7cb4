"""CHANGELOG.md and `launcher.__version__` agree on what is released."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from launcher import __version__

CHANGELOG = (Path(__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")
RELEASES = re.findall(r"^## (\S+) \((.*)\)$", CHANGELOG, re.M)
"""(version, date or "unreleased"), newest first."""


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_the_newest_release_is_the_version_of_the_package():
    version, when = RELEASES[0]
    assert version == re.sub(r"\.dev\d+$", "", __version__)
    assert (when == "unreleased") == (".dev" in __version__)


def test_every_heading_is_a_release_and_newer_ones_come_first():
    assert len(RELEASES) == len(re.findall(r"^## ", CHANGELOG, re.M))
    versions = [numbers(version) for version, _ in RELEASES]
    assert versions == sorted(set(versions), reverse=True)


def test_older_releases_have_dates_that_agree_with_their_order():
    dates = [datetime.date.fromisoformat(when) for _, when in RELEASES if when != "unreleased"]
    assert len(dates) >= len(RELEASES) - 1
    assert dates == sorted(dates, reverse=True)

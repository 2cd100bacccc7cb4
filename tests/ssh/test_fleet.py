"""A run on many hosts, in the short form of tests/bench/fleet.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench import fleet
from tests.testbed.bed import Farm

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(240)]


def test_a_run_on_sixteen_hosts_is_started_watched_and_cancelled_and_leaves_nothing(
    sshd_farm: Callable[[int], Farm], tmp_path: Path
) -> None:
    found = fleet.measure(sshd_farm(16), tmp_path, seconds=1)
    assert (found.state, found.left) == ("CANCELLED", []), found.output
    assert 16 <= found.most_connections <= 32  # one per host; one that is being replaced may still be closing
    assert "Traceback" not in found.output

"""Fixtures of all suites, and how the suites share two processes (`pytest -n 2`, as `make test` says).

Each file stays in one process, because its tests share fixtures (training runs, clusters). The container suite stays in
one process as a whole, because its image takes minutes to build. Files are handed out in the order of collection:
suites that mostly wait (hosts, Slurm) come first, so that they run beside those that compute.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ("tests.testbed.plugin",)

# Two suites that train at once, each with one thread per core, spend their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
LONGEST_FIRST = ("container", "slurm", "ssh", "train", "launcher")
TOGETHER = ("tests/container/",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(HERE).parts[0], len(places)))  # stable


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule with our own hook: `--dist loadgroup` of pytest-xdist 3.8 does nothing under pytest 9."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((suite for suite in TOGETHER if nodeid.startswith(suite)), nodeid.partition("::")[0])

    return ByFile(config, log)

"""Fixtures of all suites, and how the suites share three processes (`pytest -n 3`, as `make test` says).

Each file stays in one process, because its tests share fixtures (training runs, clusters). The container suite stays in
one process as a whole, because its image takes minutes to build. Files are handed out in the order of collection: one
of a suite that mostly waits (hosts, Slurm), then two that compute, so that two cores always have work.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ("tests.testbed.plugin",)

# Two suites that train at once, each with one thread per core, spend their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Container images often forbid bytecode. Each of hundreds of processes would compile torch and transformers again, and
# the tests that train took three times as long.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent
WAITING, COMPUTING = ("container", "slurm", "ssh"), ("train", "launcher")  # the longest first
TOGETHER = ("tests/container/",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    suites = {path: path.relative_to(HERE).parts[0] for path in files}
    waiting = sorted((path for path in files if suites[path] in WAITING), key=lambda path: WAITING.index(suites[path]))
    places = {name: place for place, name in enumerate(COMPUTING)}
    others = (path for path in files if suites[path] not in WAITING)
    computing = iter(sorted(others, key=lambda path: places.get(suites[path], len(places))))
    order = [file for path in waiting for file in (path, *itertools.islice(computing, 2))]
    items[:] = [item for path in (*order, *computing) for item in files[path]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule with our own hook: `--dist loadgroup` of pytest-xdist 3.8 does nothing under pytest 9."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((suite for suite in TOGETHER if nodeid.startswith(suite)), nodeid.partition("::")[0])

    return ByFile(config, log)

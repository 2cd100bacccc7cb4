"""Jobs on a real cluster from the browser: started by the form, watched in two terminals, stopped, resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.beds import seeing
from tests.slurm.conftest import Zl

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.browser, pytest.mark.timeout(580)]
pytest.importorskip("torch")


def test_a_training_of_two_nodes_is_started_watched_and_stopped_and_a_job_resumed(zl: Zl, chromium: Browser) -> None:
    values = {"device": "cpu", "slurm.nodes": "2", "slurm.procs_per_node": "1", "train.max_steps": "20000"}
    with seeing.opened(chromium, zl.environ, zl.home) as page:
        run = seeing.started(page, zl.runs, "slurm", {**values, "data.eval": ""})
        assert run.record.backend == "slurm"
        seeing.watched(zl.home, zl.environ, run, "slurm · 2 ranks", "of 20000,")
        seeing.stopped(page, run)
        assert run.checkpoint_steps()
        job = zl.submit("sleep 600")
        seeing.stopped(page, job)
        seeing.resumed(page, job)
        seeing.stopped(page, job)
    assert zl.leftovers(run) == []
    assert zl.leftovers(job) == []

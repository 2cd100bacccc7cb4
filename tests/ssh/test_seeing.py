"""Runs on real hosts from the browser: started by the form, watched in two terminals, stopped, fetched, resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from launcher.rundir.directory import RunDir
from tests.beds import seeing
from tests.ssh.conftest import Zl

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.ssh, pytest.mark.train, pytest.mark.browser, pytest.mark.timeout(580)]
pytest.importorskip("torch")


def test_a_training_on_two_hosts_is_started_watched_stopped_and_fetched_and_a_run_resumed(
    zl: Zl, chromium: Browser
) -> None:
    values = {
        "name": "页面",
        "device": "cpu",
        "ssh.hosts": "node1, node2",
        "ssh.ssh_config": str(zl.lab.ssh_config),
        "ssh.python": zl.lab.python,
        "train.max_steps": "20000",
        "data.eval": "",
    }
    with seeing.opened(chromium, zl.environ, zl.home) as page:
        run = seeing.started(page, zl.runs, "ssh", values)
        assert run.record.backend == "ssh"
        seeing.watched(zl.home, zl.environ, run, "ssh · 2 ranks", "node2", "of 20000,")
        seeing.stopped(page, run)
        page.click("button[data-do=pull]")
        seeing.done(page, "Fetch")
        assert (run.path / "logs/node-1/rank-1.log").exists()
        again = zl.detached("sleep 600", hosts=["node3"])
        seeing.stopped(page, RunDir(zl.runs / again))
        seeing.resumed(page, RunDir(zl.runs / again))
        seeing.stopped(page, RunDir(zl.runs / again))
    assert zl.left(run.run_id) == []
    assert zl.left(again) == []

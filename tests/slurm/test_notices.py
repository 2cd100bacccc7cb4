"""Notices of Slurm jobs: the launcher has returned long before."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from launcher.node import processes
from launcher.rundir import state
from launcher.rundir.directory import RunDir
from tests.beds.hook import SECRET, Hook, serving
from tests.slurm.conftest import Zl, events, wait
from tests.slurm.test_jobs import UNTIL_SECOND_START


def submit(zl: Zl, hook: Hook, program: str, *words: str) -> RunDir:
    zl.environ["HOOK"] = hook.address
    return zl.submit(program, "--set", "notify.url=$HOOK", *words)


def files_with_the_address(*tops: Path) -> str:
    return subprocess.run(["grep", "-rl", SECRET, *tops], capture_output=True, text=True, check=False).stdout


def test_a_preemption_and_the_end_after_the_requeue_are_reported_once_each(zl: Zl) -> None:
    with serving(Hook()) as hook:
        run = submit(zl, hook, UNTIL_SECOND_START, "--nodes", "2")
        wait(lambda: len(events(run, "ranks_started")) == 2)
        zl.cluster.run(["scancel", "--signal=USR2", "--batch", run.record.ids[0]])
        wait(lambda: events(run, "slurm_requeue"))
        zl.hurry(run)
        wait(lambda: events(run, "slurm_end"))
    assert [(said["kind"], said["final"]) for said in hook.notices] == [("preemption", True), ("end", True)]
    assert "was stopped from outside (SIGUSR2)" in hook.notices[0]["text"]
    assert files_with_the_address(zl.runs, zl.cluster.root / "state", zl.cluster.root / "log") == ""


def test_a_cancelled_job_is_an_end(zl: Zl) -> None:
    with serving(Hook()) as hook:
        run = submit(zl, hook, "sleep 300")
        wait(lambda: events(run, "ranks_started"))
        zl("cancel", run.run_id)
        wait(lambda: hook.got)
        wait(lambda: zl.squeue(run) == "")
    assert [said["kind"] for said in hook.notices] == ["end"]


def test_the_batch_script_reports_an_end_that_no_agent_saw(zl: Zl) -> None:
    with serving(Hook()) as hook:
        run = submit(zl, hook, "sleep 300")
        wait(lambda: events(run, "ranks_started"))
        warden = state.node_records(run)[0]["warden"]["pid"]
        # as the kernel does where the job's memory is at its limit
        for pid in [warden, *processes.descendants(warden)]:
            os.kill(pid, signal.SIGKILL)
        wait(lambda: hook.got)
        wait(lambda: zl.squeue(run) == "")
    (said,) = hook.notices
    assert (said["kind"], said["cause"], said["state"]) == ("failure", "killed", "FAILED")
    assert "the agents left no verdict" in said["text"]

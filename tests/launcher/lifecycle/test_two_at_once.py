"""Resumes, cancels and questions about one local run at the same time: real processes, seeded orders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.node import processes
from launcher.rundir.directory import RunDir
from tests.beds.interleavings import COUNT, PROGRAM, check_answers, check_run, together

OPERATIONS = [("resume", "--detach"), ("resume", "--detach"), ("cancel", "--now"), ("cancel",), ("status",), ("list",)]


@pytest.mark.timeout(60 + 60 * COUNT)
def test_whatever_the_order_one_start_lives_and_the_record_is_true(tmp_path: Path) -> None:
    environ = {**os.environ, "ZLAUNCH_RUNS": str(tmp_path / "runs")}

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launcher", *words], env=environ, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    first = start("local", "--device", "cpu", "--detach", "--json", "--", "bash", "-c", PROGRAM % 1.5)
    run = RunDir(Path(json.loads(first.communicate(timeout=60)[0].splitlines()[-1])["directory"]))
    start("cancel", "--now", run.run_id).wait(60)
    for seed in range(COUNT):
        answers = together(start, run.run_id, seed, OPERATIONS)
        check_answers(answers)
        state = json.loads(start("status", run.run_id, "--json").communicate(timeout=60)[0].splitlines()[-1])["state"]
        if state not in ("RUNNING", "PENDING"):
            assert processes.find_run_processes(run.run_id) == [], (seed, answers)
        end = time.monotonic() + 60
        while processes.find_run_processes(run.run_id):
            assert time.monotonic() < end
            time.sleep(0.1)
        check_run(run.path)
        state = json.loads(start("status", run.run_id, "--json").communicate(timeout=60)[0].splitlines()[-1])["state"]
        assert state in ("SUCCEEDED", "CANCELLED"), (seed, answers)
        run.update_record(state="CANCELLED")  # so that the next order may resume it

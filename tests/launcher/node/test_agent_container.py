"""The agent outside and the one inside, with stand-ins for engines: one keeps its tree below it, one has a daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.node import processes
from tests.beds.agent_bed import FOREVER, IGNORES_TERM, UNTIL_STOP, Run, bed, wait_for
from tests.beds.hook import SECRET, Hook, serving
from tests.beds.places import ROOT

Make = Callable[..., Run]

DOCKER = """#!/bin/sh
echo "$@" >> "$ENGINE_LOG"
[ "$1" = run ] || exit 0
shift 5
exec "$@"
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with bed(tmp_path) as maker:

        def in_container(program: str, engine: str = "apptainer", **options: Any) -> Run:
            argv = {"apptainer": ["env", "IN_CONTAINER=1"], "docker": ["docker", "run", "-i", "--name", "box", "image"]}
            container = {"engine": engine, "name": "box", "image": "image", "python": sys.executable}
            return maker(program, container={**container, "argv": argv[engine]}, **options)

        yield in_container


@pytest.fixture
def engine_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text(DOCKER)
    (tmp_path / "bin" / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("ENGINE_LOG", str(tmp_path / "engine.log"))
    return tmp_path / "engine.log"


def test_the_ranks_run_inside_and_are_in_the_record_outside(make: Make) -> None:
    run = make('test "$IN_CONTAINER" = 1 && echo rank $RANK', nodes=[2])
    assert run.go() == 0
    assert run.log(1) == "rank 1\n"
    assert [row["exit_code"] for row in run.record()["ranks"]] == [0, 0]
    assert run.record()["state"] == "SUCCEEDED"


def test_a_failure_inside_is_the_failure_of_the_node(make: Make) -> None:
    run = make("echo std::bad_alloc; exit 4")
    assert run.go() == 1
    assert run.record()["failure"]["cause"] == "out_of_memory"
    assert run.record()["failure"]["exit_code"] == 4


@pytest.mark.parametrize(("program", "code"), [(UNTIL_STOP, 75), (IGNORES_TERM, 130)])
def test_a_stop_reaches_the_ranks_in_the_container(make: Make, program: str, code: int) -> None:
    run = make(program, stop_deadline=0.6).start()
    wait_for(lambda: (run.path / "logs/node-0/rank-0.log").exists())
    run.signal(0)
    assert run.wait() == [code]
    assert run.left() == []


def test_a_stop_that_slurms_script_wrote_before_the_agent_started_counts(make: Make) -> None:
    run = make(UNTIL_STOP, backend="slurm")
    (run.path / "control").mkdir()
    (run.path / "control/signals-0").write_text("12\n")
    assert run.go() == 75


def test_the_container_is_ended_by_its_exact_name(make: Make, engine_log: Path) -> None:
    run = make("exit 0", engine="docker")
    assert run.go() == 0
    calls = engine_log.read_text().splitlines()
    assert calls[0] == "rm --force box"
    assert calls[1].startswith("run -i --name box image ")
    assert calls[2:] == ["stop -t 5 box", "rm --force box"]


def test_a_killed_agent_does_not_leave_its_container(make: Make, engine_log: Path) -> None:
    run = make(FOREVER, engine="docker").start()
    wait_for(lambda: (run.path / "logs/node-0/rank-0.log").exists())
    run.signal(0, signal.SIGKILL)
    assert run.wait() == [1]
    assert engine_log.read_text().splitlines()[-2:] == ["stop -t 5 box", "rm --force box"]
    assert run.left() == []


def test_the_output_of_an_engine_that_fails_is_shown(make: Make) -> None:
    run = make("exit 0")
    plan = json.loads((run.path / "plan.json").read_text())
    plan["launch"]["container"]["argv"] = ["sh", "-c", "echo no such image: llm >&2; exit 125"]
    run.write(run.path, "plan.json", plan)
    assert run.go() == 1
    assert "no such image: llm" in run.record()["failure"]["log_tail"]
    assert processes.find_run_processes(run.run_id) == []


def test_a_missing_engine_is_a_clear_failure(make: Make) -> None:
    run = make("exit 0")
    plan = json.loads((run.path / "plan.json").read_text())
    plan["launch"]["container"]["argv"] = ["no-such-engine", "run"]
    run.write(run.path, "plan.json", plan)
    assert run.go() == 1
    assert "no-such-engine" in run.record()["failure"]["message"]


def test_secrets_enter_the_container_through_a_pipe(make: Make) -> None:
    run = make("test ${#TOKEN} = 5")
    (run.path / "s").write_text('{"TOKEN": "12345"}')
    argv = [sys.executable, "code/node/agent", "--run-dir", ".", "--node-rank", "0", "--secrets-file", "s"]
    assert subprocess.run(argv, cwd=run.path, timeout=20).returncode == 0


def test_notices_are_sent_outside_and_trackers_fed_inside(make: Make, tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text(
        f"import os\nopen({str(tmp_path / 'told')!r}, 'w').write(str(dict(os.environ)))\n"
    )
    notify = {"name": "n", "url": "HOOK", "sign": None, "format": "auto", "command": "env > outside"}
    path = f"{tmp_path}:{ROOT}"
    with serving(Hook()) as hook:
        run = make(
            [sys.executable, "-S", "-c", "import os, time; print(os.environ.get('HOOK')); time.sleep(1.5)"],
            notify={**notify, "on": ["end"]}, trackers=["wandb"], env={"PYTHONPATH": path},
        )  # fmt: skip
        argv = [sys.executable, "code/node/agent", "--run-dir", ".", "--node-rank", "0", "--secrets-stdin"]
        secrets = json.dumps({"HOOK": hook.address, "WANDB_API_KEY": "k3y"}).encode()
        subprocess.run(argv, cwd=run.path, input=secrets, timeout=40, check=True)
    assert [said["state"] for said in hook.notices] == ["SUCCEEDED"]
    assert run.log() == "None\n"
    inside = (tmp_path / "told").read_text()
    assert "'IN_CONTAINER': '1'" in inside
    assert "k3y" in inside
    assert SECRET not in inside
    outside = (run.path / "outside").read_text()
    assert "IN_CONTAINER" not in outside
    assert SECRET not in outside
    assert run.left() == []

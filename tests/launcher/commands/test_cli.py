"""The command line, with real agents and torch-free programs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.beds.places import ROOT

SLEEPER = "import os, sys, time\nprint('rank', os.environ['RANK'], flush=True)\ntime.sleep(float(sys.argv[1]))\n"


@pytest.fixture(params=["plain", 'it\'s $(touch pwned) `x` "q"\n训练'])
def odd_cwd(request, tmp_path):
    path = tmp_path / request.param
    path.mkdir()
    return path


@pytest.fixture
def cwd(tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    return tmp_path


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "launcher", *args]


def environment(cwd: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "ZLAUNCH_RUNS": str(cwd / "runs"), "CUDA_VISIBLE_DEVICES": ""}


def zlaunch(cwd: Path, *args: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*args), cwd=cwd, env={**environment(cwd), **env}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr or code == 1
    return done


def wait_for(condition, seconds: float = 60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def processes_of(run_id: str) -> list[int]:
    from launcher.node import processes

    return [pid for pid, _ in processes.find_run_processes(run_id)]


def test_a_program_runs_on_every_rank_and_its_logs_are_kept(odd_cwd):
    (odd_cwd / "a b.py").write_text("import os, sys\nprint(os.environ['RANK'], sys.argv[1:])\n")
    done = zlaunch(
        odd_cwd, "local", "--device", "cpu", "--procs", "2", "--json", "--", "a b.py", "$(touch pwned)", "x\ny"
    )
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["state"], summary["world_size"]) == ("SUCCEEDED", 2)
    logs = zlaunch(odd_cwd, "logs", "last").stdout
    assert "[0] 0 ['$(touch pwned)', 'x\\ny']" in logs
    assert "[1] 1 ['$(touch pwned)', 'x\\ny']" in logs
    assert zlaunch(odd_cwd, "logs", "last", "--rank", "1").stdout.strip() == "1 ['$(touch pwned)', 'x\\ny']"
    assert "SUCCEEDED" in zlaunch(odd_cwd, "list").stdout
    assert not list(odd_cwd.rglob("pwned"))


def test_a_followed_program_shows_the_output_of_rank_0_and_the_command_for_the_rest(cwd):
    program = (
        "import os\nrank = os.environ['RANK']\nprint('here is', rank)\nif rank == '0':\n    raise SystemExit('wrong')\n"
    )
    (cwd / "say.py").write_text(program)
    words = ("local", "--device", "cpu", "--procs", "2")
    done = zlaunch(cwd, *words, "--", "say.py", code=1)
    assert done.stdout.count("here is 0\n") == 2  # as it comes, and in the last lines of the rank that failed
    run = json.loads(zlaunch(cwd, "list", "--json").stdout)["run"]
    assert f"zlaunch logs {run}" in done.stdout
    again = zlaunch(cwd, "resume", "last", "--json", code=1)
    assert again.stderr.count("here is 0\n") == 2
    assert len(again.stdout.splitlines()) == 1  # no line of the program's among what a script reads


def test_a_failing_program_exits_1_with_the_rank_and_its_last_lines(cwd):
    (cwd / "bad.py").write_text("import os\nif os.environ['RANK'] == '1':\n    raise SystemExit('no such thing')\n")
    done = zlaunch(cwd, "local", "--device", "cpu", "--procs", "2", "--", "bad.py", code=1)
    assert "rank 1" in done.stdout
    assert "no such thing" in done.stdout
    assert "no such thing" in zlaunch(cwd, "status", "last").stdout


def test_a_dry_run_writes_the_files_and_starts_nothing(cwd):
    (cwd / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (cwd / "job.yaml").write_text("model: {path: some/model}\ndata: {train: train.jsonl}\n")
    rendered = json.loads(zlaunch(cwd, "local", "--dry-run", "--json", "--device", "cpu").stdout)
    directory = Path(rendered["directory"])
    assert {"job.yaml", "plan.json", "train.json", "node.sh", "code"} <= {path.name for path in directory.iterdir()}
    assert (directory / "code" / "train" / "config.py").exists()
    assert not (directory / "run.json").exists()
    assert "not submitted" in zlaunch(cwd, "status", rendered["run"], code=2).stderr
    words = ("local", "--dry-run", "--json", "--device", "cpu", "--python", "/p/python")
    directory = Path(json.loads(zlaunch(cwd, *words).stdout)["directory"])
    assert json.loads((directory / "plan.json").read_text())["launch"]["python"] == "/p/python"


def test_init_writes_a_job_that_plans_and_is_not_overwritten(cwd):
    zlaunch(cwd, "init")
    (cwd / "data").mkdir()
    (cwd / "data" / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    zlaunch(cwd, "local", "--dry-run", "--device", "cpu")
    assert "exists already" in zlaunch(cwd, "init", code=2).stderr


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (["local", "none.yaml"], 2, "no such job file"),
        (["local", "--set", "train.epoch=1"], 2, "did you mean `train.epochs`?"),
        (["local", "--gpus", "4"], 1, "4 GPUs requested, 0 found"),
        (["local", "--device", "cuda"], 1, "--device cpu"),
        (["local", "--device", "cpu", "--gpus", "2"], 2, "contradict"),
        (
            ["local", "--device", "cpu", "--procs", "3", "--smoke", "--global-batch-size", "8"],
            2,
            "nearest sizes that can",
        ),
        (["local", "--device", "cpu", "--model", "gpt2", "--train-data", "none.jsonl"], 2, "none.jsonl"),
        (["local", "--device", "cpu", "--smoke", "--model", "./none"], 2, "no such directory"),
        (["local", "--device", "cpu", "--set", "secrets=[ZL_NOT_SET]"], 2, "ZL_NOT_SET"),
        (["local", "--device", "cpu", "--"], 2, "expected a program after"),
        (["status", "nothing"], 2, "no runs in"),
        (["lokal"], 2, "Did you mean 'local'?"),
    ],
)
def test_a_users_mistake_is_a_clear_error(cwd, args, code, part):
    done = zlaunch(cwd, *args, code=code)
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((cwd / "runs").glob("*/run.json"))


def test_detach_returns_at_once_and_the_run_outlives_its_terminal(cwd):
    # a terminal of its own, closed right after the command has returned: its processes get SIGHUP
    controller, terminal = pty.openpty()
    started = subprocess.Popen(
        command("local", "--device", "cpu", "--detach", "--json", "--", "sleeper.py", "3"),
        cwd=cwd, env=environment(cwd), stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    out, _ = started.communicate(timeout=30)
    os.close(terminal)
    os.close(controller)
    run = json.loads(out.splitlines()[-1])["run"]
    assert json.loads(zlaunch(cwd, "status", run, "--json").stdout)["state"] == "RUNNING"
    wait_for(lambda: json.loads(zlaunch(cwd, "status", run, "--json").stdout)["state"] == "SUCCEEDED")


def test_cancel_ends_every_process_and_is_idempotent(cwd):
    out = zlaunch(
        cwd, "local", "--device", "cpu", "--procs", "2", "--detach", "--json", "--", "sleeper.py", "60"
    ).stdout
    run = json.loads(out)["run"]
    wait_for(lambda: len(processes_of(run)) >= 2)
    assert "CANCELLED" in zlaunch(cwd, "cancel", run[:-2]).stdout
    assert processes_of(run) == []
    assert "already CANCELLED" in zlaunch(cwd, "cancel", run).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_attached_run_ends_cleanly_with_130(cwd, number):
    attached = subprocess.Popen(
        command("local", "--device", "cpu", "--procs", "2", "--", "sleeper.py", "60"),
        cwd=cwd, env=environment(cwd), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(lambda: list(cwd.glob("runs/*/logs/node-0/rank-1.log")))
    run = next(cwd.glob("runs/*")).name
    attached.send_signal(number)
    out, _ = attached.communicate(timeout=30)
    assert attached.returncode == 130, out
    assert f"zlaunch resume {run}" in out
    assert processes_of(run) == []


def test_secrets_reach_the_ranks_and_no_file(cwd):
    (cwd / "show.py").write_text("import os\nprint(len(os.environ['ZL_TOKEN']))\n")
    zlaunch(cwd, "local", "--device", "cpu", "--set", "secrets=[ZL_TOKEN]", "--", "show.py", ZL_TOKEN="s3cr3t-value")
    assert zlaunch(cwd, "logs", "last", "--rank", "0").stdout.strip() == "12"
    texts = [path.read_bytes() for path in (cwd / "runs").rglob("*") if path.is_file()]
    assert not any(b"s3cr3t-value" in text for text in texts)


def test_a_finished_run_is_not_resumed_without_a_change(cwd):
    zlaunch(cwd, "local", "--device", "cpu", "--", "sleeper.py", "0")
    assert "has succeeded" in zlaunch(cwd, "resume", "last", code=2).stderr


def test_runs_on_one_machine_use_separate_ports(cwd):
    started = [
        subprocess.Popen(
            command("local", "--device", "cpu", "--procs", "2", "--json", "--", "sleeper.py", "1"),
            cwd=cwd, env=environment(cwd), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    results = [json.loads(process.communicate(timeout=60)[0].splitlines()[-1]) for process in started]
    assert [result["state"] for result in results] == ["SUCCEEDED"] * 3
    plans = [json.loads((Path(result["directory"]) / "plan.json").read_text())["launch"] for result in results]
    assert len({plan["master_port"] for plan in plans} | {plan["control_port"] for plan in plans}) == 6

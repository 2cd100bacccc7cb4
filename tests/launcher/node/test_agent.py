"""One node under a real agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.node import processes
from launcher.node.agent.signals import SAME_SIGNAL
from tests.beds.agent_bed import FOREVER, IGNORES_TERM, UNTIL_STOP, Run, bed, wait_for

Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with bed(tmp_path) as maker:
        yield maker


def test_ranks_get_the_environment_of_torchrun(make: Make) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK NODE_RANK MASTER_ADDR MASTER_PORT ZLAUNCH_RUN_ID"
    run = make("env", nodes=[2], env={"COLOUR": "grün"})
    assert run.go() == 0
    for rank in (0, 1):
        seen = dict(line.split("=", 1) for line in run.log(rank).splitlines() if "=" in line)
        got = {name: seen[name] for name in names.split()}
        assert got == {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "0", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(run.launch["master_port"]), "ZLAUNCH_RUN_ID": run.run_id,
        }  # fmt: skip
        assert seen["COLOUR"] == "grün"
        assert seen["PYTHONPATH"].split(":")[0] == str(run.path / "code")
    assert run.record()["state"] == "SUCCEEDED"
    assert [row["exit_code"] for row in run.record()["ranks"]] == [0, 0]


@pytest.mark.parametrize(
    ("given", "expected"), [({}, max(1, len(os.sched_getaffinity(0)) // 2)), ({"OMP_NUM_THREADS": "7"}, 7)]
)
def test_threads_are_shared_among_ranks_unless_the_job_says(make: Make, given: dict[str, str], expected: int) -> None:
    run = make("unset X; echo threads=$OMP_NUM_THREADS", nodes=[2], env=given)
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    argv = [sys.executable, "code/node/agent", "--run-dir", ".", "--node-rank", "0"]
    subprocess.run(argv, cwd=run.path, env=environ, check=True, timeout=20)
    assert f"threads={expected}" in run.log(1)


def test_secrets_reach_the_ranks_and_no_file_or_command_line(make: Make) -> None:
    run = make('test ${#HF_TOKEN} = 6 && tr "\\0" " " < /proc/$PPID/cmdline')
    argv = [sys.executable, "code/node/agent", "--run-dir", ".", "--node-rank", "0", "--secrets-stdin"]
    done = subprocess.run(argv, cwd=run.path, input=b'{"HF_TOKEN": "s3cr3t"}', timeout=20, capture_output=True)
    assert done.returncode == 0
    texts = [path.read_bytes() for path in run.path.rglob("*") if path.is_file()]
    assert not [text for text in [*texts, done.stdout, done.stderr] if b"s3cr3t" in text]


def test_a_secrets_file_is_deleted_once_read(make: Make, tmp_path: Path) -> None:
    run, file = make('test "$A" = b'), tmp_path / "secrets"
    file.write_text('{"A": "b"}')
    argv = [sys.executable, "code/node/agent", "--run-dir", ".", "--node-rank", "0", "--secrets-file", str(file)]
    assert subprocess.run(argv, cwd=run.path, timeout=20).returncode == 0
    assert not file.exists()


@pytest.mark.parametrize(
    ("program", "code", "cause", "says"),
    [
        ("echo 'RuntimeError: CUDA out of memory. Tried to'; exit 1", 1, "out_of_memory", "micro_batch_size"),
        ("echo 'OSError: [Errno 28] No space left on device'; exit 1", 1, "disk_full", "free space"),
        ("echo 'torch.distributed.DistBackendError: NCCL error in: x'; exit 1", 1, "nccl", "NCCL_DEBUG"),
        ("echo 'no such key' >&2; exit 2", 2, "bad_configuration", "correct"),
        ("echo 'ValueError: x'; exit 3", 3, "bug", "last lines"),
        ("kill -SEGV $$", None, "bug", "last lines"),
        ("kill -KILL $$", None, "killed", "another process sent a signal"),
        ('echo \'{"cause": "data", "message": "line 7", "advice": ["fix it"]}\' > errors/rank-0.json; exit 2',
         2, "data", "fix it"),
    ],
)  # fmt: skip
def test_a_failed_rank_is_recorded_with_its_cause(make: Make, program: str, code: int, cause: str, says: str) -> None:
    run = make(program)
    assert run.go() == 1
    failure = run.record()["failure"]
    assert (run.record()["state"], failure["cause"], failure["exit_code"], failure["rank"]) == (
        "FAILED",
        cause,
        code,
        0,
    )
    assert says in failure["advice"][0]
    assert "rank 0" in failure["message"]


def test_the_record_has_the_last_twenty_lines_in_any_encoding(make: Make) -> None:
    run = make("for i in $(seq 30); do echo line $i; done; printf '\\377\\376 \\r50%%\\r100%% 中文\\n'; exit 1")
    assert run.go() == 1
    tail = run.record()["failure"]["log_tail"]
    assert len(tail) == 20
    assert tail[-2:] == ["line 30", "100% 中文"]


def test_one_failed_rank_ends_the_others_and_is_shown_first(make: Make) -> None:
    run = make('[ "$RANK" = 1 ] && sleep 0.2 && exit 9; ' + IGNORES_TERM, nodes=[3])
    started = time.monotonic()
    assert run.go() == 1
    assert time.monotonic() - started < 5
    assert (run.record()["failure"]["rank"], run.record()["failure"]["exit_code"]) == (1, 9)
    assert run.left() == []


def test_a_consequence_of_a_failure_does_not_hide_its_cause(make: Make) -> None:
    echo = "while [ ! -e died ]; do sleep 0.01; done; echo 'RuntimeError: gloo: Connection closed by peer'; exit 1"
    run = make(f'trap "" TERM; if [ "$RANK" = 1 ]; then touch died; exit 7; fi; {echo}', nodes=[2])
    assert run.go() == 1
    assert run.record()["failure"]["rank"] == 1


def test_a_killed_rank_ends_everything_within_seconds(make: Make) -> None:
    run = make(FOREVER, nodes=[2]).start().wait_started()
    os.kill(run.rank_pid(1), signal.SIGKILL)
    assert run.wait(5) == [1]
    assert run.record()["failure"]["cause"] == "killed"
    assert "signal 9" in run.record()["failure"]["message"]
    assert run.left() == []


@pytest.mark.parametrize("victim", ["agent", "warden"])
def test_a_killed_supervisor_leaves_neither_ranks_nor_grandchildren(make: Make, victim: str) -> None:
    program = "setsid sleep 301 & env -i setsid sleep 302 & echo up; exec sleep 303"
    run = make(program, nodes=[2], stop_deadline=0.5).start().wait_started()
    wait_for(lambda: "up" in run.log(0) and "up" in run.log(1))
    record = run.record()
    below = [(pid, processes.start_time_of(pid)) for pid in processes.descendants(record["pid"])]
    assert len(below) == 6
    os.kill(record["pid"] if victim == "agent" else record["warden"]["pid"], signal.SIGKILL)
    wait_for(lambda: not [pid for pid, start in below if processes.is_alive(pid, start)], 10)
    wait_for(lambda: run.left() == [])
    state = wait_for(lambda: run.record()["state"] != "RUNNING" and run.record())
    if victim == "agent":
        assert (state["state"], state["failure"]["cause"], run.wait()) == ("FAILED", "killed", [1])
    else:
        assert state["state"] == "CANCELLED"


def test_a_stop_request_lets_the_program_save_and_end(make: Make) -> None:
    run = make(UNTIL_STOP, nodes=[2]).start().wait_started()
    run.signal(0, signal.SIGINT)
    assert run.wait() == [75]
    assert run.record()["state"] == "STOPPED"
    assert run.events("request")[0]["by"] == "SIGINT"


def test_the_preemption_signal_is_a_stop_and_usr1_a_checkpoint(make: Make) -> None:
    run = make(UNTIL_STOP).start().wait_started()
    run.signal(0, signal.SIGUSR1)
    wait_for((run.path / "control" / "checkpoint").exists)
    assert run.agents[0].poll() is None
    run.signal(0, signal.SIGUSR2)
    assert run.wait() == [75]


def test_a_program_that_ignores_a_stop_is_terminated_after_the_deadline_and_then_killed(make: Make) -> None:
    run = make(IGNORES_TERM, stop_deadline=0.5).start().wait_started()
    started = time.monotonic()
    run.signal(0)
    assert run.wait() == [130]
    assert 0.9 < time.monotonic() - started < 4
    assert run.record()["ranks"][0]["signal"] == signal.SIGKILL
    assert run.record()["state"] == "CANCELLED"
    assert run.left() == []


@pytest.mark.parametrize("ending", ["exit 0", "exit 1", "exit 143"])
def test_a_scheduler_that_signals_ranks_and_agent_stops_the_run_whatever_the_ranks_do(make: Make, ending: str) -> None:
    run = make(f'trap "{ending}" TERM; echo up; while :; do sleep 0.02; done', cooperative=False).start()
    wait_for(lambda: (run.path / "logs/node-0/rank-0.log").exists() and run.log())
    rank = run.rank_pid()
    run.signal(0, signal.SIGSTOP)  # so that both have happened when it looks
    os.kill(rank, signal.SIGTERM)
    wait_for(lambda: not processes.is_alive(rank, processes.start_time_of(rank)))
    run.signal(0)
    run.signal(0, signal.SIGCONT)
    assert run.wait() == [130]
    assert run.record()["state"] == "CANCELLED"


@pytest.mark.parametrize("ending", ["", "trap 'exit 143' TERM; "])
def test_ranks_that_die_of_the_schedulers_signal_before_the_agent_gets_its_own_are_cancelled(
    make: Make, ending: str
) -> None:
    run = make(ending + "echo up; while :; do sleep 0.02; done", nodes=[2], cooperative=False, max_restarts=1).start()
    wait_for(lambda: len(run.events("ranks_started")) and run.log(0) and run.log(1))
    os.kill(run.rank_pid(0), signal.SIGTERM)
    os.kill(run.rank_pid(1), signal.SIGTERM)
    wait_for(lambda: len(run.events("rank_exit")) == 2)
    time.sleep(0.2)
    run.signal(0)
    assert run.wait() == [130]
    assert (run.record()["failure"], run.record()["restarts"]) == (None, 0)


def test_a_rank_that_a_stranger_ended_has_failed(make: Make) -> None:
    run = make(FOREVER, nodes=[2]).start().wait_started()
    os.kill(run.rank_pid(1), signal.SIGTERM)
    assert run.wait(6) == [1]
    assert run.record()["failure"]["cause"] == "killed"


def test_a_second_ctrl_c_does_not_wait_for_the_deadline(make: Make) -> None:
    run = make(FOREVER, stop_deadline=60.0).start().wait_started()
    run.signal(0, signal.SIGINT)
    time.sleep(SAME_SIGNAL + 0.1)
    assert run.agents[0].poll() is None
    run.signal(0, signal.SIGINT)
    assert run.wait(5) == [130]


def test_a_program_that_does_not_cooperate_is_terminated_at_once(make: Make) -> None:
    run = make("trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done", stop_deadline=60.0, cooperative=False)
    run.start().wait_started()
    time.sleep(0.2)
    run.signal(0)
    assert run.wait(5) == [130]
    assert "bye" in run.log()


def test_a_daemon_started_by_a_rank_does_not_outlive_the_run(make: Make) -> None:
    run = make("(setsid sleep 300 &) ; (env -i setsid sh -c 'trap \"\" TERM; sleep 300; :' &) ; sleep 0.1; exit 0")
    pids: list[int] = []
    run.start()
    wait_for(lambda: pids.extend(processes.descendants(run.agents[0].pid)) or len(pids) > 4)
    assert run.wait() == [0]
    assert not [pid for pid in pids if processes.process_of(pid) is not None]


def test_nothing_is_started_twice(make: Make) -> None:
    run = make(UNTIL_STOP).start().wait_started()
    again = subprocess.run(
        [sys.executable, "code/node/agent", "--run-dir", ".", "--node-rank", "0"], cwd=run.path, capture_output=True
    )
    assert again.returncode == 1
    assert "is running here already" in again.stderr.decode()
    run.signal(0)
    assert run.wait() == [75]
    assert run.start().wait_started(1).record()["state"] == "RUNNING"  # an ended run may be started again


def test_other_runs_on_the_machine_are_never_touched(make: Make) -> None:
    mine, other = make(FOREVER, nodes=[2]).start(), make(FOREVER, nodes=[2]).start()
    mine.wait_started(), other.wait_started()
    before = other.left()
    os.kill(mine.rank_pid(0), signal.SIGKILL)
    assert mine.wait() == [1]
    assert mine.left() == []
    assert other.left() == before


def test_a_failure_that_may_pass_is_retried_on_another_port(make: Make) -> None:
    run = make(
        "echo port=$MASTER_PORT try=$ZLAUNCH_RESTART_COUNT; [ $ZLAUNCH_RESTART_COUNT = 2 ] || exit 5", max_restarts=3
    )
    assert run.go() == 0
    assert run.record()["restarts"] == 2
    assert [event["count"] for event in run.events("restart")] == [1, 2]
    assert "code 5" in run.events("restart")[0]["reason"]
    ports = {line.split()[0] for line in run.log().splitlines()}
    assert len(ports) == 3
    assert f"port={run.launch['control_port']}" not in ports


@pytest.mark.parametrize(("program", "restarts"), [("exit 5", 1), ("exit 2", 0), ("echo std::bad_alloc; exit 1", 0)])
def test_restarts_are_bounded_and_skip_failures_that_would_recur(make: Make, program: str, restarts: int) -> None:
    run = make(program, max_restarts=1)
    assert run.go() == 1
    assert run.record()["restarts"] == restarts
    assert "restart" in run.record()["failure"]["message"]


def test_a_program_that_does_not_exist_is_a_clear_failure(make: Make) -> None:
    run = make(["/no/such/program"])
    assert run.go() == 1
    assert run.record()["failure"]["cause"] == "bad_configuration"
    assert "/no/such/program" in run.record()["failure"]["message"]


@pytest.mark.parametrize("name", ["with space", "quo'te\"s", "$(touch hacked)", "line\nbreak", "中文目录", "-dash"])
def test_odd_directories_are_just_names(tmp_path: Path, name: str) -> None:
    with bed(tmp_path / name) as maker:
        run = maker('cat "$ZLAUNCH_RUN_DIR/plan.json" > /dev/null && pwd')
        assert run.go() == 0
        assert run.log() == f"{run.path}\n"
    assert not list(tmp_path.rglob("hacked"))


def test_a_broken_plan_is_refused_in_one_line(make: Make) -> None:
    run = make("exit 0")
    (run.path / "plan.json").write_text("{")
    argv = [sys.executable, "code/node/agent", "--run-dir", ".", "--node-rank", "0"]
    done = subprocess.run(argv, cwd=run.path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "plan.json" in done.stderr


def test_the_agent_starts_from_anywhere(make: Make, tmp_path: Path) -> None:
    run = make("exit 0")
    argv = [sys.executable, str(run.path / "code" / "node" / "agent"), "--run-dir", str(run.path), "--node-rank", "0"]
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # as where code/ is mounted read-only
    assert subprocess.run(argv, cwd="/", env=environ, timeout=20).returncode == 0
    assert not list(run.path.rglob("*.pyc"))


def test_a_detached_agent_returns_at_once_and_continues(make: Make) -> None:
    run = make(UNTIL_STOP)
    argv = [sys.executable, "code/node/agent", "--run-dir", ".", "--node-rank", "0", "--detach"]
    subprocess.run(argv, cwd=run.path, check=True, capture_output=True, timeout=10)
    record = run.record()
    assert record["state"] == "RUNNING"
    assert os.getsid(record["pid"]) != os.getsid(0)
    run.signal(0)
    wait_for(lambda: run.record()["state"] == "STOPPED")
    wait_for(lambda: run.left() == [])


def test_the_agent_costs_little_and_notices_an_end_at_once(make: Make) -> None:
    run = make("exit 0", nodes=[2])

    def slowest() -> float:
        """Seconds of the slower one of its start and its end."""
        started = time.time()
        assert run.go() == 0
        ended = time.time()
        return max(run.events("ranks_started")[-1]["time"] - started, ended - run.events("rank_exit")[-1]["time"])

    # Measured 0.12 s; a busy machine delays some of the tries. Without the pipes of the ranks it would be 5 s.
    assert any(slowest() < 2.5 for _ in range(8))
    assert json.loads((run.path / "plan.json").read_text())["schema"] == 1

"""LocalBackend on real run directories."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from launcher.backends.local.single_node import LocalBackend, kill_leftovers
from launcher.errors import TargetError
from launcher.lifecycle.cancel import cancel_run
from launcher.node import processes
from launcher.plan.types import RunPlan
from launcher.rundir import state
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState
from tests.beds.agent_bed import FOREVER, IGNORES_TERM, UNTIL_STOP, Run, bed, wait_for

NO_PLAN = cast(RunPlan, None)  # the backend reads the rendered files, not the plan
NODE_SH = f"""cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")"
rank=$1
shift
exec {shlex.quote(sys.executable)} -S code/node/agent/__main__.py --run-dir . --node-rank "$rank" "$@"
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., tuple[Run, RunDir]]]:
    with bed(tmp_path / "o'dd $(dir) 中") as maker:

        def rendered(program: str, node_sh: str = NODE_SH, **launch: Any) -> tuple[Run, RunDir]:
            run = maker(program, **launch)
            (run.path / "node.sh").write_text(node_sh)
            return run, RunDir(run.path)

        yield rendered


Make = Callable[..., tuple[Run, RunDir]]
BACKEND = LocalBackend()


def test_a_run_goes_from_submit_to_success(make: Make) -> None:
    run, directory = make("echo hello ${#TOKEN}", nodes=[2])
    (pid,) = BACKEND.submit(directory, NO_PLAN, {"TOKEN": "12345"})
    assert int(pid) == run.record()["pid"]
    wait_for(lambda: BACKEND.state(directory) is RunState.SUCCEEDED)
    assert "".join(block.text for block in BACKEND.logs(directory, rank=1)) == "hello 5\n"


def test_logs_can_be_followed_to_the_end(make: Make) -> None:
    _, directory = make("for i in 1 2 3; do echo $i; sleep 0.1; done")
    BACKEND.submit(directory, NO_PLAN, {})
    assert "".join(block.text for block in BACKEND.logs(directory, rank=0, follow=True)) == "1\n2\n3\n"
    assert BACKEND.state(directory).is_final


def test_submit_returns_while_the_run_continues_outside_our_session(make: Make) -> None:
    run, directory = make(UNTIL_STOP)
    started = time.monotonic()
    BACKEND.submit(directory, NO_PLAN, {})
    assert time.monotonic() - started < 3
    assert BACKEND.state(directory) is RunState.RUNNING
    assert os.getsid(run.record()["pid"]) != os.getsid(0)
    assert os.getppid() != run.record()["pid"]


def test_cancel_lets_the_run_save_a_checkpoint_and_can_be_repeated(make: Make) -> None:
    run, directory = make(UNTIL_STOP, nodes=[2])
    BACKEND.submit(directory, NO_PLAN, {})
    for _ in range(2):
        BACKEND.cancel(directory)
        assert run.record()["state"] == "STOPPED"
        assert BACKEND.state(directory) is RunState.CANCELLED
        assert run.left() == []


def test_cancel_without_a_checkpoint_does_not_wait_for_one(make: Make) -> None:
    run, directory = make(IGNORES_TERM, stop_deadline=60.0)
    BACKEND.submit(directory, NO_PLAN, {})
    started = time.monotonic()
    BACKEND.cancel(directory, checkpoint=False)
    assert time.monotonic() - started < 5
    assert run.record()["state"] == "CANCELLED"
    assert run.left() == []


def test_cancel_stops_a_run_whose_agent_hangs(make: Make) -> None:
    run, directory = make(FOREVER, stop_deadline=0.1, kill_after=0.1)
    BACKEND.submit(directory, NO_PLAN, {})
    agent, over = run.record()["pid"], threading.Event()

    def hang() -> None:
        while not over.wait(0.005):
            processes.kill_quietly(agent, signal.SIGSTOP)

    threading.Thread(target=hang).start()
    BACKEND.cancel(directory, checkpoint=False)
    over.set()
    assert run.left() == []
    assert BACKEND.state(directory) is RunState.FAILED


@pytest.mark.parametrize("stopped", ["agent", "warden", "both"])
def test_cancel_lets_stopped_agents_and_wardens_go_on_and_end_the_run(make: Make, stopped: str) -> None:
    run, directory = make(UNTIL_STOP, stop_deadline=60.0)
    BACKEND.submit(directory, NO_PLAN, {})
    record = run.wait_started().record()
    pids = {"agent": [record["pid"]], "warden": [record["warden"]["pid"]]}
    for pid in pids.get(stopped, [*pids["agent"], *pids["warden"]]):
        os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    BACKEND.cancel(directory)
    assert time.monotonic() - started < 20
    assert run.record()["state"] == "STOPPED"
    assert run.left() == []
    assert not BACKEND.is_alive(directory)


def test_cancel_ends_a_stopped_warden_of_a_run_that_succeeded(make: Make) -> None:
    run, directory = make("while [ ! -e go ]; do sleep 0.05; done")
    directory.save_record(RunRecord(run_id=run.run_id, name="a", backend="local", created=1.0, submitted=1.0))
    BACKEND.submit(directory, NO_PLAN, {})
    record = run.wait_started().record()
    warden = record["warden"]
    os.kill(warden["pid"], signal.SIGSTOP)
    (run.path / "go").touch()
    wait_for(lambda: BACKEND.state(directory) is RunState.SUCCEEDED)
    assert processes.is_stopped(warden["pid"], warden["start_time"])
    assert str(cancel_run(directory, checkpoint=True)) == f"{run.run_id}: SUCCEEDED"
    assert not processes.is_alive(warden["pid"], warden["start_time"])
    assert directory.record.state == "SUCCEEDED"
    assert str(cancel_run(directory, checkpoint=True)) == f"{run.run_id}: already SUCCEEDED"


def test_cancel_kills_what_is_left_when_agent_and_warden_were_killed(make: Make) -> None:
    run, directory = make("setsid sleep 300 & wait")
    BACKEND.submit(directory, NO_PLAN, {})
    record = run.wait_started().record()
    wait_for(lambda: len(processes.find_run_processes(run.run_id)) >= 2)
    os.kill(record["warden"]["pid"], signal.SIGSTOP)
    os.kill(record["pid"], signal.SIGKILL)
    os.kill(record["warden"]["pid"], signal.SIGKILL)
    wait_for(lambda: state.derive_state(directory) is RunState.LOST)
    BACKEND.cancel(directory)
    assert processes.find_run_processes(run.run_id) == []


def test_cancel_of_a_run_that_never_started_is_no_error(make: Make) -> None:
    _, directory = make("exit 0")
    BACKEND.cancel(directory)
    assert BACKEND.state(directory) is RunState.PENDING


def test_cancel_never_touches_a_process_that_took_over_the_pid(make: Make) -> None:
    run, directory = make("exit 0")
    BACKEND.submit(directory, NO_PLAN, {})
    wait_for(lambda: BACKEND.state(directory).is_final and run.left() == [])
    record = {**run.record(), "pid": os.getpid(), "state": "RUNNING", "warden": None}
    run.write(run.path / "nodes", "node-0.json", record)
    BACKEND.cancel(directory)  # would end this very process
    assert BACKEND.state(directory) is RunState.LOST


@pytest.mark.parametrize(
    ("node_sh", "error"),
    [
        ("echo no module called conda >&2\nexit 7\n", "no module called conda"),
        ("exec python-that-is-not-there\n", "not found"),
    ],
)
def test_a_failed_start_reports_the_reason(make: Make, node_sh: str, error: str) -> None:
    _, directory = make("exit 0", node_sh)
    with pytest.raises(TargetError, match=error):
        BACKEND.submit(directory, NO_PLAN, {})


def test_a_second_submit_of_a_running_run_is_refused_and_harms_nothing(make: Make) -> None:
    run, directory = make(UNTIL_STOP)
    BACKEND.submit(directory, NO_PLAN, {})
    with pytest.raises(TargetError, match="is running here already"):
        BACKEND.submit(directory, NO_PLAN, {})
    assert BACKEND.state(directory) is RunState.RUNNING
    assert len(run.events("agent_started")) == 1


def test_a_run_that_is_cancelled_while_its_agent_is_started_does_not_run(make: Make) -> None:
    _, directory = make(FOREVER, "sleep 1.5\n" + NODE_SH)
    directory.save_record(RunRecord(run_id=directory.run_id, name="a", backend="local", created=1.0))
    on_another_terminal = threading.Timer(0.5, BACKEND.cancel, [directory])
    on_another_terminal.start()
    with pytest.raises(KeyboardInterrupt):
        BACKEND.submit(directory, NO_PLAN, {})
    on_another_terminal.join()
    BACKEND.cancel(directory, checkpoint=False)  # as launcher.submit does then
    assert BACKEND.state(directory) is RunState.CANCELLED
    assert directory.record.state == "CANCELLED"


def test_a_process_that_another_command_starts_after_the_kill_has_not_survived_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = iter([[], [(os.getpid(), None)]])  # the next start of the run has begun between the two
    monkeypatch.setattr(processes, "find_run_processes", lambda _: next(looks))
    assert kill_leftovers("a-20260101-000000-aaaa") == []

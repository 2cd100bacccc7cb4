"""The pure parts of the agent: rank table, ports, batch, causes, the coordinator's decisions."""

from __future__ import annotations

import ast
import errno
import json
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.node import files, proofs
from launcher.node.agent import recorder as recorder_module
from launcher.node.agent.causes import CAUSES, cause_of_exit, cause_of_text, failure_of, first_cause
from launcher.node.agent.coordinator import Coordinator
from launcher.node.agent.launch import DEFAULTS, EOF_GRACE, REQUEST_GRACE, Names, port_of_attempt, table_without
from launcher.node.agent.link import Link
from launcher.node.agent.recorder import Recorder
from launcher.node.agent.resize import BatchError, resize_batch, resized_files
from launcher.node.agent.warden import record_death
from tests.beds.agent_bed import copy_agent

NODES = [{"node_rank": r, "host": f"h{r}", "procs": procs, "first_rank": 0} for r, procs in enumerate([1, 2, 4])]


def test_the_rank_table_numbers_the_remaining_nodes() -> None:
    assert [row["first_rank"] for row in table_without(NODES, set())] == [0, 1, 3]
    assert [(row["node_rank"], row["first_rank"]) for row in table_without(NODES, {1})] == [(0, 0), (2, 1)]


def test_no_attempt_uses_the_control_port_or_an_earlier_port() -> None:
    launch = {"master_port": 100, "control_port": 102}
    assert [port_of_attempt(launch, attempt) for attempt in range(5)] == [100, 101, 103, 104, 105]


@pytest.mark.parametrize(
    ("batch", "micro", "world", "expected"),
    [(64, 4, 8, (4, 2)), (64, 4, 7, None), (12, 4, 2, (3, 2)), (6, 2, 3, (2, 1))],
)
def test_another_world_size_keeps_the_global_batch_or_is_refused(
    batch: int, micro: int, world: int, expected: tuple[int, int] | None
) -> None:
    if expected is None:
        with pytest.raises(BatchError, match="does not divide"):
            resize_batch(batch, micro, world)
    else:
        assert resize_batch(batch, micro, world) == expected


def test_both_configurations_are_resized_and_nothing_else_of_them_changes() -> None:
    train = {"global_batch_size": 8, "micro_batch_size": 2, "gradient_accumulation_steps": 1, "seed": 1}
    deepspeed = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1}
    files = {"train.json": {"world_size": 4, "train": train}, "ds_config.json": deepspeed}
    new = resized_files(files, 2)
    assert new["train.json"] == {"world_size": 2, "train": {**train, "gradient_accumulation_steps": 2}}
    assert new["ds_config.json"] == {**deepspeed, "gradient_accumulation_steps": 2}


def test_a_consequence_is_shown_only_if_no_other_failure_is_known() -> None:
    echo, lost, real = ({"cause": cause} for cause in ("nccl", "lost_host", "killed"))
    assert first_cause([echo, lost, real]) is real
    assert first_cause([echo, lost]) is lost
    assert first_cause([]) is None


def test_every_cause_has_advice_and_a_pattern_that_compiles() -> None:
    assert all(cause.advice for cause in CAUSES)
    assert cause_of_text("nothing known") == "bug"
    assert cause_of_exit(None, signal.SIGBUS, "") == "disk_full"


class Hub:
    """A coordinator with a recorder in place of sockets."""

    def __init__(self, tmp_path: Path, **launch: Any) -> None:
        self.sent: list[tuple[int, str]] = []
        self.finish: dict[str, Any] = {}
        whole = {**DEFAULTS, "nodes": NODES, **launch}
        self.it = Coordinator(whole, self.send, lambda *_, **__: None, tmp_path)
        self.it.begin(0.0)

    def send(self, node: int, command: dict[str, Any]) -> None:
        self.sent.append((node, command["do"]))
        self.finish = command if command["do"] == "finish" else self.finish

    def all_there(self) -> Hub:
        for node in range(3):
            self.it.arrived(node)
        return self

    def all_report(self, *outcomes: str) -> str:
        for node, outcome in enumerate(outcomes):
            self.it.reported(node, self.it.attempt, outcome)
        return str(self.finish.get("state"))


def test_the_start_waits_for_the_last_node(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.it.arrived(0), hub.it.arrived(2)
    assert hub.sent == []
    hub.it.arrived(1)
    assert hub.sent == [(0, "start"), (1, "start"), (2, "start")]


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        (("ok", "ok", "ok"), "SUCCEEDED"),
        (("stopped", "stopped", "stopped"), "STOPPED"),
        (("stopped", "cancelled", "ok"), "STOPPED"),
        (("ok", "cancelled", "ok"), "CANCELLED"),
    ],
)
def test_the_verdict_follows_from_how_the_nodes_ended(tmp_path: Path, outcomes: tuple[str, ...], state: str) -> None:
    assert Hub(tmp_path).all_there().all_report(*outcomes) == state


def test_the_verdict_waits_for_every_node(tmp_path: Path) -> None:
    assert Hub(tmp_path).all_there().all_report("ok", "ok") == "None"


def test_a_stop_before_the_start_cancels_without_starting(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.it.arrived(0)
    hub.it.request("stop")
    hub.all_there()
    assert hub.finish["state"] == "CANCELLED"
    assert "start" not in [command for _, command in hub.sent]


def test_a_stop_forbids_a_restart(tmp_path: Path) -> None:
    hub = Hub(tmp_path, max_restarts=3).all_there()
    hub.it.request("stop")
    hub.it.failing(1, 0, failure_of("bug", "x"))
    assert hub.all_report("cancelled", "failed", "cancelled") == "FAILED"


def test_ranks_that_a_scheduler_terminated_with_the_agent_are_cancelled_not_failed(tmp_path: Path) -> None:
    hub = Hub(tmp_path).all_there()
    hub.it.failing(1, 0, failure_of("killed", "x", signum=signal.SIGTERM))
    hub.it.request("stop")
    assert hub.all_report("cancelled", "failed", "cancelled") == "CANCELLED"


def test_ranks_that_all_died_of_a_schedulers_signal_have_not_succeeded(tmp_path: Path) -> None:
    hub = Hub(tmp_path).all_there()
    hub.it.request("stop")
    for node in range(3):
        hub.it.failing(node, 0, failure_of("killed", "x", signum=signal.SIGTERM))
    assert hub.all_report("failed", "failed", "failed") == "CANCELLED"


@pytest.mark.parametrize(
    "how", [{"signum": signal.SIGTERM}, {"signum": signal.SIGINT}, {"exit_code": 143}, {"exit_code": 130}]
)
def test_a_request_just_after_the_ranks_died_of_its_signal_still_counts(tmp_path: Path, how: dict[str, int]) -> None:
    hub = Hub(tmp_path, max_restarts=1).all_there()
    hub.it.failing(1, 0, failure_of("bug", "x", **how))
    assert hub.all_report("cancelled", "failed", "cancelled") == "None"
    hub.it.tick(100.0)
    hub.it.request("stop")
    hub.it.tick(100.1)
    assert (hub.finish["state"], hub.finish["failure"]) == ("CANCELLED", None)


@pytest.mark.parametrize(
    ("launch", "outcome", "asked", "state"),
    [
        ({"backend": "slurm", "cooperative": False}, "ok", True, "CANCELLED"),
        ({"backend": "slurm", "cooperative": False}, "ok", False, "SUCCEEDED"),
        ({"backend": "slurm", "cooperative": False}, "stopped", True, "STOPPED"),
        ({"backend": "slurm"}, "ok", True, "SUCCEEDED"),
        ({"cooperative": False}, "ok", True, "SUCCEEDED"),
    ],
)
def test_a_program_that_exits_0_after_slurms_stop_signal_has_not_succeeded(
    tmp_path: Path, launch: dict[str, Any], outcome: str, asked: bool, state: str
) -> None:
    hub = Hub(tmp_path, **launch).all_there()
    hub.all_report(outcome, "ok", "ok")
    hub.it.tick(100.0)
    if asked:
        hub.it.request("stop")
    hub.it.tick(100.0 + (0.1 if asked else REQUEST_GRACE))
    assert hub.finish["state"] == state


def test_ranks_that_died_of_a_stop_signal_without_a_request_have_failed(tmp_path: Path) -> None:
    hub = Hub(tmp_path, max_restarts=1).all_there()
    for attempt, start in enumerate((100.0, 200.0)):
        hub.it.failing(1, attempt, failure_of("killed", "x", signum=signal.SIGTERM))
        assert hub.all_report("cancelled", "failed", "cancelled") == "None"
        hub.it.tick(start)
        hub.it.tick(start + REQUEST_GRACE - 0.1)
        assert (hub.it.attempt, hub.finish) == (attempt, {})
        hub.it.tick(start + REQUEST_GRACE)
    assert (hub.it.attempt, hub.finish["state"], hub.finish["failure"]["cause"]) == (1, "FAILED", "killed")


def test_a_node_that_reconnects_learns_what_it_missed(tmp_path: Path) -> None:
    hub = Hub(tmp_path).all_there()
    hub.it.failing(0, 0, failure_of("bug", "x"))
    hub.sent.clear()
    hub.it.returned(2)
    assert hub.sent == [(2, "start"), (2, "end")]
    hub.all_report("failed", "cancelled", "cancelled")
    hub.sent.clear()
    hub.it.returned(2)
    assert hub.sent == [(2, "finish")]


def test_a_report_of_an_earlier_attempt_is_ignored(tmp_path: Path) -> None:
    hub = Hub(tmp_path, max_restarts=1).all_there()
    hub.it.failing(0, 0, failure_of("bug", "x"))
    hub.all_report("failed", "cancelled", "cancelled")
    assert hub.it.attempt == 1
    hub.it.failing(1, 0, failure_of("bug", "late"))
    hub.it.reported(1, 0, "failed")
    assert hub.all_report("ok", "ok", "ok") == "SUCCEEDED"


def test_a_closed_connection_has_seconds_to_return_and_a_silent_one_the_timeout(tmp_path: Path) -> None:
    hub = Hub(tmp_path).all_there()
    hub.it.heard(1, 100.0), hub.it.heard(2, 100.0)
    hub.it.disconnected(2, 100.0)
    hub.it.tick(100.0 + EOF_GRACE + 0.1)
    assert set(hub.it.active) == {0, 1}
    hub.it.tick(161.0)
    assert set(hub.it.active) == {0}


def test_the_agent_needs_python_3_8_and_its_standard_library_only(tmp_path: Path) -> None:
    copy_agent(tmp_path / "code")
    for file in (tmp_path / "code").rglob("*.py"):
        ast.parse(file.read_text(), feature_version=(3, 8))
    argv = [sys.executable, "-I", "-S", "-X", "importtime", "code/node/agent", "--run-dir", ".", "--node-rank", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "plan.json is missing" in done.stderr
    assert "launcher" not in done.stderr


def test_the_final_state_is_recorded_even_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(tmp_path, 0)
    names.make()
    recorder = Recorder(names, {"run_id": "r"}, 0)
    recorder.save()

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recorder_module, "write_atomic", full)
    recorder.save(state="FAILED", ended=1.0, failure=failure_of("disk_full", "full", log_tail=["x"] * 20))
    record = json.loads(Path(names.record).read_text())
    assert (record["state"], record["failure"]["cause"], record["failure"]["log_tail"]) == ("FAILED", "disk_full", [])


@pytest.mark.parametrize(
    ("code", "signum", "state", "cause"),
    [(0, None, "SUCCEEDED", None), (75, None, "STOPPED", None), (130, None, "CANCELLED", None),
     (1, None, "FAILED", "bug"), (None, 9, "FAILED", "killed")],
)  # fmt: skip
def test_the_exit_status_tells_the_state_of_an_agent_that_could_not_write(
    tmp_path: Path, code: int | None, signum: int | None, state: str, cause: str | None
) -> None:
    names, launch = Names(tmp_path, 0), {**DEFAULTS, "run_id": "r", "inside": False}
    names.make()
    recorder = Recorder(names, launch, 0)
    recorder.save()
    record_death(launch, names, recorder.content["pid"], recorder.content["start_time"], code, signum)
    record = json.loads(Path(names.record).read_text())
    assert (record["state"], (record["failure"] or {}).get("cause")) == (state, cause)
    assert record["ended"]


def test_a_stop_that_may_be_lost_is_repeated_in_the_next_attempt(tmp_path: Path) -> None:
    link = Link({**DEFAULTS, "control_port": 1}, 1, selectors.DefaultSelector(), lambda command: None)
    link.report({"say": "ended", "attempt": 0, "outcome": "failed"})
    link.report({"say": "request", "request": "stop"})
    link.new_attempt()
    assert [message["say"] for message in link.outbox] == ["request"]


def test_two_nodes_whose_agents_have_one_pid_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, others = files.os.replace, ["other"]

    def meanwhile(source: str, target: str) -> None:
        while others:
            files.write_atomic(target, others.pop())
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", meanwhile)
    files.write_atomic(tmp_path / "train.json", "ours")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("train.json", "ours")]


def test_any_answer_of_a_stranger_is_refused() -> None:
    right = proofs.proof("token", "agent", "\ud800")
    assert proofs.same_proof(right, right)
    assert not any(proofs.same_proof(wrong, right) for wrong in (None, 1, ["x"], "\ud800", right[:-1]))

"""The SSH backend where no host can be reached; tests/ssh has real ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launcher.backends.ssh import hosts, watch
from launcher.backends.ssh.hosts import SshBackend, bring_home
from launcher.backends.ssh.watch import Following, Place, Seen, verdict
from launcher.cli import cli
from launcher.errors import TargetError
from launcher.remote.connect import Options
from launcher.remote.fleet import Fleet, HostError, Session
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses: its port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "a-20260101-000000-aaaa")
    run.write({"plan.json": "{}"})
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend="ssh", created=1.0, state="RUNNING"))
    yield run
    watch.OPEN.pop(run.path, None)


def went_to(run: RunDir, *hosts: str) -> None:
    places = [Place(host, f"/w/runs/{run.run_id}", "/w", 0, {}) for host in hosts]
    extra = {"places": [asdict(place) for place in places], "options": asdict(Options()), "python": "python3"}
    run.update_record(extra=extra)


def test_pull_says_that_the_host_with_the_results_is_out_of_reach(run: RunDir, nobody: str) -> None:
    went_to(run, nobody)
    with pytest.raises(TargetError, match=r"which has the results of .* cannot be reached: .*refused"):
        SshBackend().pull(run)


def test_pull_tells_the_files_as_json_too(run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    monkeypatch.setattr(SshBackend, "pull", lambda *_, **__: ["result.json"])
    done = CliRunner().invoke(cli, ["pull", "last", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout) == {"run": run.run_id, "directory": str(run.path), "files": ["result.json"]}


def test_a_run_that_went_on_elsewhere_is_asked_about_there(run: RunDir) -> None:
    went_to(run, "one", "two")
    before = watch.conversation_of(run)
    assert watch.conversation_of(run) is before
    went_to(run, "three")
    assert [place.host for place in watch.conversation_of(run).places] == ["three"]


class Answers(Session):
    """A host that says what the test wants; it counts the files that it gave."""

    is_open = True
    files: tuple[tuple[str, int], ...] = ()
    gives = 99
    looked: dict[str, Any] = {"record": None, "alive": False, "files": [], "more": False, "payload": b""}

    def call(self, operation: str, payload: bytes = b"", *, timeout: float = 1, **arguments: Any) -> dict[str, Any]:
        if operation == "get":
            self.gives -= 1
            if self.gives < 0:
                raise HostError("the connection broke")
            return {"payload": b"x"}
        return {"tree": {"files": [list(file) for file in self.files]}, "poll_node": self.looked}[operation]


@pytest.fixture
def talk(run: RunDir) -> tuple[Following, Answers]:
    went_to(run, "one")
    fleet = Fleet(["one"], Options(), "python3")
    host = Answers("one", Options(), "python3")
    fleet.sessions[0] = host
    return Following(run, fleet, [Place("one", "/w/r", "/w", 0, {})]), host


def test_a_pull_cut_in_the_middle_leaves_no_checkpoint_that_counts(talk: tuple[Following, Answers]) -> None:
    conversation, host = talk
    host.files = (("checkpoints/step-5/COMPLETE", 1), ("checkpoints/step-5/weights", 1))
    host.gives = 1
    with pytest.raises(HostError):
        bring_home(conversation, checkpoints=True)
    assert conversation.run.checkpoint_steps() == []
    host.gives = 99
    bring_home(conversation, checkpoints=True)
    assert conversation.run.checkpoint_steps() == [5]
    assert not list(conversation.run.checkpoints.rglob("*.part"))


def test_a_pull_replaces_metrics_that_a_resume_there_has_cut(talk: tuple[Following, Answers]) -> None:
    conversation, host = talk
    conversation.run.metrics.write_text("yz")
    host.files = (("metrics.jsonl", 1),)
    assert bring_home(conversation) == []
    assert conversation.run.metrics.read_text() == "x"


def test_no_room_here_is_no_traceback(talk: tuple[Following, Answers]) -> None:
    conversation, host = talk
    (conversation.run.path / "logs").write_text("in the way")
    host.looked = {**host.looked, "files": [["logs/node-0/rank-0.log", 0, 1]], "payload": b"x"}
    with pytest.raises(TargetError, match=r"cannot write the copy of .* here: "):
        conversation.look(logs=True)
    host.looked = {**host.looked, "files": [], "payload": b""}
    (conversation.run.path / "adapter").write_text("in the way")
    host.files = (("adapter/a", 1),)
    with pytest.raises(TargetError, match=r"cannot write .*adapter/a here: "):
        bring_home(conversation)


def test_a_node_whose_record_vanished_is_lost_and_not_one_that_will_start(talk: tuple[Following, Answers]) -> None:
    conversation, host = talk
    conversation.look()
    assert verdict(conversation.seen) is RunState.PENDING
    host.looked = {**host.looked, "record": {"state": "RUNNING"}, "alive": True}
    conversation.look()
    assert verdict(conversation.seen) is RunState.RUNNING
    host.looked = Answers.looked
    conversation.look()
    assert verdict(conversation.seen) is RunState.LOST
    assert verdict([Seen(reached=True), Seen(reached=True)]) is RunState.PENDING


def test_a_cancel_before_the_agents_are_there_is_left_for_the_launcher_that_starts_them(
    talk: tuple[Following, Answers],
) -> None:
    conversation, _ = talk
    run = conversation.run
    run.update_record(state="PENDING")
    watch.OPEN[run.path] = conversation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hosts, "conversation_of", lambda run: conversation)
        patch.setattr(hosts, "end_strays", lambda conversation: ({}, {}))
        SshBackend().cancel(run)
    assert run.record.state == "CANCELLED"


@pytest.mark.parametrize("to_the_end", [False, True])
def test_a_ctrl_c_hangs_up_or_waits_and_cuts_no_conversation_in_the_middle(to_the_end: bool) -> None:
    fleet = Fleet(["one"], Options(), "python3")
    hung_up = threading.Event()
    where: list[threading.Thread | None] = []
    fleet.sessions[0].close = hung_up.set  # type: ignore[method-assign]

    def ask(_: int, session: Session) -> str:
        where.append(threading.current_thread())
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        hung_up.wait(0.5 if to_the_end else 20)
        where.append(None)
        return "answer"

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fleet.each(ask, to_the_end=to_the_end)
    assert time.monotonic() - started < 10
    assert hung_up.is_set() is not to_the_end
    assert where[0] is not threading.main_thread()
    assert where[-1] is None

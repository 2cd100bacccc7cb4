"""A watch on a run's hosts, on fake ones: views, the state that follows, and results copied here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from filelock import FileLock

from launcher.backends.ssh.copy_files import copy_results
from launcher.backends.ssh.hosts import SshBackend
from launcher.backends.ssh.watch import CopyBusy, HostWatch, NodeView, run_state
from launcher.errors import HostsError, TargetError
from launcher.remote.connect import Options
from launcher.remote.fleet import Fleet
from launcher.remote.session import Json
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState
from tests.beds.fake_hosts import FakeSession, fake_watch


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "a-20260101-000000-aaaa")
    run.write({"plan.json": '{"train": {"train": {}}}'})
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend="ssh", created=1.0, state="RUNNING"))
    return run


@pytest.fixture
def host() -> FakeSession:
    return FakeSession()


@pytest.fixture
def watch(run: RunDir, host: FakeSession) -> HostWatch:
    return fake_watch(run, host)


# ---------------------------------------------------------------------------------------------------------- results


def test_an_interrupted_pull_leaves_no_checkpoint_that_counts(watch: HostWatch, host: FakeSession) -> None:
    host.files = (("checkpoints/step-5/COMPLETE", 1), ("checkpoints/step-5/weights", 1))
    host.bytes_left = 1
    with pytest.raises(HostsError, match="one: "):
        copy_results(watch, checkpoints=True)
    assert watch.run.checkpoint_steps() == []
    host.bytes_left = 99
    copy_results(watch, checkpoints=True)
    assert watch.run.checkpoint_steps() == [5]
    assert not list(watch.run.checkpoints.rglob("*.part"))


def test_a_pull_replaces_metrics_that_a_resume_on_the_host_has_cut(watch: HostWatch, host: FakeSession) -> None:
    watch.run.metrics.write_text("yz")
    host.files = (("metrics.jsonl", 1),)
    assert copy_results(watch) == []
    assert watch.run.metrics.read_text() == "x"


def test_a_full_disk_here_is_an_error_and_no_traceback(watch: HostWatch, host: FakeSession) -> None:
    (watch.run.path / "logs").write_text("in the way")
    host.node = {**host.no_record, "files": [["logs/node-0/rank-0.log", 0, 1]], "payload": b"x"}
    with pytest.raises(TargetError, match=r"cannot write the copy of .* here: "):
        watch.poll(logs=True)
    host.node = host.no_record
    (watch.run.path / "adapter").write_text("in the way")
    host.files = (("adapter/a", 1),)
    with pytest.raises(TargetError, match=r"cannot write .*adapter: a file of that name is in the way") as caught:
        copy_results(watch)
    assert "move it away" in str(caught.value.hint)


def test_a_copy_that_another_command_makes_is_waited_for_where_it_matters_and_hides_no_state(
    watch: HostWatch, host: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.backends.ssh.watch.LOCK_SECONDS", 0.1)
    monkeypatch.setattr("launcher.backends.ssh.watch.GLANCE_SECONDS", 0.1)
    watch.run.update_record(extra={"places": [msgspec.to_builtins(place) for place in watch.places]})
    host.node = {**host.no_record, "record": {"state": "RUNNING"}, "alive": True}
    backend = SshBackend()
    backend._watches[watch.run.path] = watch
    with FileLock(watch.run.path / ".mirror.lock", is_singleton=False):
        for work in (
            lambda: copy_results(watch),
            lambda: list(backend.logs(watch.run)),
            lambda: backend.pull(watch.run),
        ):
            with pytest.raises(CopyBusy, match="another command is still copying"):
                work()
        assert backend.state(watch.run) is RunState.RUNNING
        host.node = {**host.no_record, "record": {"state": "SUCCEEDED"}}
        watch.polled = float("-inf")
        assert backend.state(watch.run) is RunState.SUCCEEDED
        backend.cancel(watch.run)
    assert copy_results(watch) == []


# ------------------------------------------------------------------------------------------------------------ state


def test_a_node_whose_record_vanished_is_lost_and_not_about_to_start(watch: HostWatch, host: FakeSession) -> None:
    watch.poll()
    assert run_state(watch.views) is RunState.PENDING
    host.node = {**host.no_record, "record": {"state": "RUNNING"}, "alive": True}
    watch.poll()
    assert run_state(watch.views) is RunState.RUNNING
    host.node = host.no_record
    watch.poll()
    assert run_state(watch.views) is RunState.LOST
    assert run_state([NodeView(reached=True), NodeView(reached=True)]) is RunState.PENDING


def test_a_host_out_of_reach_keeps_its_last_record_and_is_not_dialed_again_at_once(
    watch: HostWatch, host: FakeSession
) -> None:
    host.node = {**host.no_record, "record": {"state": "RUNNING"}, "alive": True}
    watch.poll()
    closed = Fleet(["127.0.0.1:1"], Options(), "python3").sessions[0]
    watch.fleet.sessions[0] = closed
    dialed: list[float] = []
    closed.open = lambda: dialed.append(1.0)  # type: ignore[method-assign]
    for _ in range(3):
        watch.poll()
    assert len(dialed) == 1
    assert watch.views[0].record == {"state": "RUNNING"}
    assert not watch.views[0].reached
    assert run_state(watch.views) is None


def view(state: str | None, alive: bool = False, reached: bool = True) -> NodeView:
    return NodeView({"state": state} if state else None, reached, alive)


LOST, AWAY = view("RUNNING"), view("RUNNING", reached=False)


@pytest.mark.parametrize(
    ("nodes", "state"),
    [
        ([view("RUNNING", True), view("RUNNING", True)], RunState.RUNNING),
        ([view("SUCCEEDED"), view("RUNNING", True)], RunState.RUNNING),
        ([view("SUCCEEDED"), view("SUCCEEDED")], RunState.SUCCEEDED),
        ([view("SUCCEEDED"), view("FAILED")], RunState.SUCCEEDED),  # elastic: the hub's record counts
        ([view("FAILED"), AWAY], RunState.FAILED),
        ([view("STOPPED"), view("STOPPED")], RunState.CANCELLED),
        ([LOST, view("FAILED")], RunState.LOST),
        ([AWAY, view("RUNNING", True)], RunState.RUNNING),
        ([AWAY, view("FAILED")], RunState.FAILED),
        ([AWAY, AWAY], None),
        ([view(None), view(None)], RunState.PENDING),
        ([view(None, reached=False)], None),
    ],
)
def test_the_state_of_a_run_follows_from_what_its_hosts_show(nodes: list[NodeView], state: RunState | None) -> None:
    assert run_state(nodes) is state


class Endless(FakeSession):
    """A host that always has a log line more."""

    def call(self, operation: str, payload: bytes = b"", *, timeout: float = 1, **arguments: Any) -> Json:
        if operation != "poll_node":
            return super().call(operation, payload, timeout=timeout, **arguments)
        name, line = "logs/node-0/rank-0.log", b"a line\n"
        start = arguments["offsets"].get(name, 0)
        return {**self.no_record, "files": [[name, start, len(line)]], "more": True, "payload": line}


@pytest.mark.parametrize(("seconds", "warns"), [(0.05, False), (0.2, True)])
def test_a_host_that_always_has_more_holds_up_a_poll_for_its_time_only(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float, warns: bool
) -> None:
    monkeypatch.setattr("launcher.backends.ssh.watch.AT_THE_END", 0.2)
    watched = fake_watch(run, Endless())
    for _ in range(2):  # the second continues where the first has stopped
        begin = time.monotonic()
        watched.poll(logs=True, seconds=seconds)
        assert time.monotonic() - begin < 10
    text = run.rank_log(0, 0).read_text()
    assert text == "a line\n" * (len(text) // 7)
    assert ("zlaunch pull" in capsys.readouterr().err) == warns

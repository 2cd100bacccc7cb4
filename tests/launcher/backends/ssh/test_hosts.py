"""The SSH backend with hosts that no test needs to reach; tests/ssh has real ones."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.backends.ssh.hosts import SshBackend
from launcher.backends.ssh.watch import NodePlace
from launcher.cli import cli
from launcher.errors import TargetError
from launcher.remote.connect import Options
from launcher.rundir.directory import RunDir, RunRecord
from tests.beds.fake_hosts import FakeSession, fake_watch


@pytest.fixture
def refusing() -> Iterator[str]:
    """An address that refuses: its port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "a-20260101-000000-aaaa")
    run.write({"plan.json": '{"train": {"train": {}}}'})
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend="ssh", created=1.0, state="RUNNING"))
    return run


def record_hosts(run: RunDir, *hosts: str) -> None:
    places = [asdict(NodePlace(host, f"/w/runs/{run.run_id}", "/w", 0, {})) for host in hosts]
    run.update_record(extra={"places": places, "options": asdict(Options()), "python": "python3"})


def test_pull_names_the_host_with_the_results_that_is_out_of_reach(run: RunDir, refusing: str) -> None:
    record_hosts(run, refusing)
    with pytest.raises(TargetError, match=rf"cannot reach {refusing}, which has the results of .*refused"):
        SshBackend().pull(run)


def test_pull_prints_the_files_as_json_too(run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    monkeypatch.setattr(SshBackend, "pull", lambda *_, **__: ["result.json"])
    done = CliRunner().invoke(cli, ["pull", "last", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout) == {"run": run.run_id, "directory": str(run.path), "files": ["result.json"]}


def test_a_run_that_was_resumed_elsewhere_is_watched_there(run: RunDir) -> None:
    record_hosts(run, "one", "two")
    backend = SshBackend()
    watch = backend.watch(run)
    assert backend.watch(run) is watch
    record_hosts(run, "three")
    assert [place.host for place in backend.watch(run).places] == ["three"]


def test_a_run_that_was_never_sent_has_nothing_to_cancel(run: RunDir) -> None:
    SshBackend().cancel(run, checkpoint=False)
    assert run.record.state == "RUNNING"


def test_a_submission_without_a_survey_is_refused(run: RunDir) -> None:
    with pytest.raises(TargetError, match="the hosts were not surveyed"):
        SshBackend().submit(run, None, {})  # type: ignore[arg-type]


def test_a_cancel_before_the_agents_are_up_is_left_to_the_launcher_that_starts_them(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_hosts(run, "one")
    run.update_record(state="PENDING")
    host = FakeSession()
    watch = fake_watch(run, host)
    monkeypatch.setattr(SshBackend, "watch", lambda self, run: watch)
    SshBackend().cancel(run)
    assert run.record.state == "CANCELLED"
    assert host.called == ["poll_node", "poll_node", "leftovers", "poll_node"]

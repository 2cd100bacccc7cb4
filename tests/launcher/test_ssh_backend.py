"""The SSH backend where no host can be reached; tests/ssh has real ones."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.backends import ssh
from launcher.backends.ssh import Place, SshBackend
from launcher.cli import cli
from launcher.connect import Options
from launcher.errors import TargetError
from launcher.runs import RunDir, RunRecord


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
    ssh._OPEN.pop(run.path, None)


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
    before = ssh.conversation_of(run)
    assert ssh.conversation_of(run) is before
    went_to(run, "three")
    assert [place.host for place in ssh.conversation_of(run).places] == ["three"]

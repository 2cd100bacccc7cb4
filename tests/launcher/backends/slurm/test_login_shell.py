"""The shell on a login host, over a connection that is a local shell; tests/slurm/test_login.py has a real one."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from launcher.backends.slurm.login_shell import LoginShell
from launcher.backends.slurm.synced_files import CHECKPOINTS, RESULTS
from launcher.errors import TargetError
from launcher.rundir.directory import RunDir


class Connection:
    """The methods of a connection that LoginShell calls."""

    is_connected = True

    def __init__(self, login_shell: str = "bash") -> None:
        self.login_shell = login_shell
        self.modes: list[int] = []
        self.broken: Exception | None = None

    def run(self, words: str, timeout: float | None = None) -> Any:
        done = subprocess.run([self.login_shell, "-c", words], capture_output=True, text=True)
        return SimpleNamespace(ok=done.returncode == 0, exited=done.returncode, stdout=done.stdout, stderr=done.stderr)

    def put(self, file: IO[bytes], remote: str) -> None:
        if self.broken is not None:
            raise self.broken
        self.modes.append(Path(remote).stat().st_mode & 0o777)
        Path(remote).write_bytes(file.read())

    def get(self, remote: str, file: IO[bytes], most: int, moved: Callable[[int], None]) -> None:
        if self.broken is not None:
            raise self.broken
        assert Path(remote).stat().st_size <= most
        file.write(Path(remote).read_bytes())
        moved(Path(remote).stat().st_size)

    def close(self) -> None:
        self.is_connected = False


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / "demo-20261124-120000-abcd")
    made.write({"plan.json": '{"train": {"train": {}}}', "logs/old.log": "", "code/train/a.py": ""})
    return made


@pytest.fixture
def there(tmp_path: Path) -> Path:
    place = tmp_path / "my cluster"
    place.mkdir()
    return place


def shell_on(there: Path, login_shell: str = "bash") -> LoginShell:
    shell = LoginShell("me@login", str(there))
    shell._found_workdir, shell._connection = str(there), Connection(login_shell)
    return shell


def test_only_the_owner_can_read_the_files_in_transit(run: RunDir, there: Path) -> None:
    shell = shell_on(there)
    shell.send([run.path])
    shell.write_secrets(run.path.parent / ".secrets" / f"{run.run_id}.json", {"TOKEN": "x"})
    assert shell._connection.modes == [0o600, 0o600]
    assert sorted(path.name for path in (there / run.run_id).iterdir()) == ["code", "plan.json"]
    secret = there / ".secrets" / f"{run.run_id}.json"
    assert json.loads(secret.read_text()) == {"TOKEN": "x"}
    assert (secret.stat().st_mode & 0o777, secret.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert list(there.glob(".incoming-*")) == []


@pytest.mark.parametrize("login_shell", ["bash", "dash", "fish", "zsh", "tcsh"])
def test_any_login_shell_passes_on_what_sh_is_to_do(run: RunDir, there: Path, login_shell: str) -> None:
    if shutil.which(login_shell) is None:
        pytest.skip(f"{login_shell} is not installed")
    odd = there / "it's $HOME !0 \\' a\\\\b"
    odd.mkdir()
    shell = shell_on(odd, login_shell)
    shell.send([run.path])
    shell.write_secrets(run.path.parent / ".secrets" / "a.json", {"TOKEN": "x"})
    assert sorted(path.name for path in odd.iterdir()) == [".secrets", run.run_id]
    RunDir(odd / run.run_id).write({"nodes/node-0.json": "{}"})
    assert sorted(shell.fetch(run) or ()) == ["nodes/node-0.json"]
    done = shell.run(["printf", "%s|", "it's", "$HOME", "!0", "a\\\\b", "two\nlines"], cwd=str(odd))
    assert done.stdout == "it's|$HOME|!0|a\\\\b|two\nlines|"
    assert shell.run(["sh", "-c", "exit 3"]).code == 3


@pytest.mark.parametrize("error", [OSError("Failure"), EOFError(), RuntimeError("SSH session not active")])
def test_a_broken_connection_is_one_clear_error_and_is_not_used_again(
    run: RunDir, there: Path, error: Exception
) -> None:
    for action in (
        lambda shell: shell.send([run.path]),
        lambda shell: shell.write_secrets(run.path / "s", {}),
        lambda shell: shell.fetch(run, ["nodes"]),
    ):
        shell = shell_on(there)
        (there / run.run_id / "nodes").mkdir(parents=True, exist_ok=True)
        connection, shell._connection.broken = shell._connection, error
        with pytest.raises(TargetError, match=r"me@login: cannot (send|write|fetch)"):
            action(shell)
        assert not connection.is_connected
        assert shell._connection is None


def test_a_refusal_of_the_login_host_is_a_target_error(run: RunDir, there: Path) -> None:
    (there / "file").touch()
    shell = shell_on(there / "file")
    with pytest.raises(TargetError, match=r"cannot write the file of secrets: .*Not a directory"):
        shell.write_secrets(run.path.parent / ".secrets" / "a.json", {})
    with pytest.raises(TargetError, match=r"cannot write control/cancelled: .*Not a directory"):
        shell.write(run.control_dir / "cancelled", "{}")


def test_fetched_files_appear_whole_and_records_removed_there_are_removed_here(run: RunDir, there: Path) -> None:
    shell, far = shell_on(there), RunDir(there / run.run_id)
    text = json.dumps({"node_rank": 0, "log_tail": ["x" * 80] * 2000})
    far.write({"nodes/node-0.json": text, "nodes/node-1.json": text, "events.jsonl": "{}\n"})
    assert sorted(shell.fetch(run) or ()) == ["events.jsonl", "nodes/node-0.json", "nodes/node-1.json"]
    (far.nodes_dir / "before-1").mkdir()
    (far.nodes_dir / "node-1.json").rename(far.nodes_dir / "before-1/node-1.json")
    done, torn = threading.Event(), []

    def watch() -> None:
        while not done.is_set():
            try:
                json.loads((run.nodes_dir / "node-0.json").read_text())
            except (OSError, ValueError) as error:
                torn.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(20):
            shell.fetch(run)
    finally:
        done.set()
        watcher.join()
    assert torn == []
    assert [path.name for path in sorted(run.nodes_dir.iterdir())] == ["before-1", "node-0.json"]
    assert list(run.path.glob(".incoming-*")) == list(there.glob(".outgoing-*")) == []


def test_checkpoints_are_fetched_only_when_they_are_complete(run: RunDir, there: Path) -> None:
    shell, far = shell_on(there), RunDir(there / run.run_id)
    far.write({"checkpoints/step-1/COMPLETE": "", "checkpoints/step-1/state": "1", "checkpoints/step-2/state": "2"})
    assert sorted(shell.fetch(run, [*RESULTS, CHECKPOINTS]) or ()) == [
        "checkpoints/step-1/COMPLETE", "checkpoints/step-1/state",
    ]  # fmt: skip
    assert shell.fetch(run, ["adapter"]) == []


def test_what_cannot_be_packed_is_an_error_and_not_an_absence(run: RunDir, there: Path) -> None:
    shell = shell_on(there)
    with pytest.raises(TargetError, match=r"cannot pack the run's files: .*No such file"):
        shell.fetch(run)
    RunDir(there / run.run_id).write({"events.jsonl": "{}\n"})
    shell._found_workdir = str(there / "full")
    shell.path_there = lambda path: str(there / path.name)  # type: ignore[method-assign]
    with pytest.raises(TargetError, match=r"cannot pack the run's files: .*full"):
        shell.fetch(run)

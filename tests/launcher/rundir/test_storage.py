"""Disks that are full, read-only or gone, and records that were cut off: errors with advice, and the true state."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.errors import StorageError, TargetError
from launcher.machine.storage import storage_error, written
from launcher.node import files, processes, write_errors
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.jsonl import complete_lines, unlike
from launcher.rundir.state import RunState, derive_state, first_failure
from tests.beds.agent_bed import wait_for
from train.rundir import run_files

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a small file system in memory."""
    if os.getuid():
        pytest.skip("mounting needs root")
    made: list[Path] = []

    def make(*options: str) -> Path:
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", place], check=True)
        made.append(place)
        return place

    yield make
    for place in made:
        subprocess.run(["umount", "-l", place], check=True)


def zlaunch(runs: Path, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "ZLAUNCH_RUNS": str(runs), "COLUMNS": "300"}
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words], env=environ, capture_output=True, text=True, timeout=timeout,
        check=False, cwd=runs.parent, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def program(*words: str) -> tuple[str, ...]:
    return ("local", "--device", "cpu", "--procs", "1", "--", *words)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("size=12k",), "node.sh: the disk is full (0 B of 12 KiB"),
        (("size=200k",), ": the disk is full (0 B of 200 KiB"),
        (("size=50m", "nr_inodes=10"), "the file system can hold no more files ("),
        (("size=50m", "ro"), "the file system is read-only"),
    ],
)
def test_a_start_on_a_disk_without_room_is_an_error_with_advice_and_leaves_nothing(
    mount: Mount, options: tuple[str, ...], reason: str
) -> None:
    place = mount(*options)
    done = zlaunch(place, *program("true"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error[ZL-FILE-03]: cannot write {place}/run-")
    assert reason in done.stderr
    assert "\n  -> " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(place.iterdir()) == []


def test_runs_cannot_be_kept_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words in (program("true"), ("list",), ("status", "last")):
        done = zlaunch(tmp_path / "file", *words)
        assert done.returncode == 1
        assert "a part of the path is a file, not a directory\n  -> move that file away" in done.stderr


def test_a_disk_that_fills_up_while_a_run_prints_is_named_by_the_command_that_follows_it_and_later(
    mount: Mount,
) -> None:
    place = mount("size=900k")
    noise = "import sys\nfor _ in range(9000): print('x' * 4000, flush=True)"
    done = zlaunch(place, *program(sys.executable, "-c", noise))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    later = zlaunch(place, "status", "last").stdout
    for shown in (done.stdout, later):
        assert "FAILED" in shown
        assert "cause: disk_full" in shown
        assert re.search(r"\((0 B|[0-9.]+ KiB) of 900 KiB and ", shown), shown
    assert "already FAILED" in zlaunch(place, "cancel", "last").stdout


def test_a_run_directory_that_is_removed_ends_the_command_and_the_run(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "launcher", *program("sleep", "300")]
    environ = {**os.environ, "ZLAUNCH_RUNS": str(tmp_path / "runs")}
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        wait_for(lambda: list(tmp_path.glob("runs/*/logs/node-0/rank-0.log")), 60)
        run_id = next(tmp_path.glob("runs/*")).name
        wait_for(lambda: processes.find_run_processes(run_id))
        time.sleep(1)  # the command follows the run now
        shutil.rmtree(tmp_path / "runs" / run_id)
        output = command.communicate(timeout=30)
    assert command.returncode == 1
    assert f"{run_id} is gone: the run directory was removed" in output[1]
    wait_for(lambda: not processes.find_run_processes(run_id), 30)
    assert list((tmp_path / "runs").iterdir()) == []


def a_run(root: Path, state: str = "PENDING") -> RunDir:
    run = RunDir(root / "cut-20260101-000000-aaaa")
    run.write({"plan.json": '{"train": {"train": {}}}'})
    run.save_record(RunRecord(run_id=run.run_id, name="cut", backend="local", created=1.0, state=state))
    return run


@pytest.mark.parametrize("content", ["", '{"schema": 1, "state": "RUN', "[1]", "\0" * 900])
def test_a_node_record_that_was_cut_off_is_reported_and_not_pending(tmp_path: Path, content: str) -> None:
    run = a_run(tmp_path)
    run.nodes_dir.mkdir()
    run.node_record(0).write_text(content)
    assert derive_state(run) is RunState.LOST
    failure = first_failure(run)
    assert failure is not None
    assert f"{run.node_record(0)} is damaged: {len(content)} bytes" in failure["message"]
    shown = (
        CliRunner().invoke(cli, ["status", run.run_id], env={"ZLAUNCH_RUNS": str(tmp_path), "COLUMNS": "300"}).output
    )
    assert "LOST" in shown
    assert "is damaged" in shown


def test_lines_that_were_cut_off_are_counted_and_the_next_line_is_whole(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.event("one")
    run.metrics.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    with run.events.open("a") as file:
        file.write('{"event": "torn')
    assert unlike(complete_lines(run.events)) == []  # it may still be growing
    run.event("two")
    run_files.append_line(run.metrics, {"step": 3, "loss": 0.5})
    assert [event["event"] for event in run.read_events()] == ["one", "two"]
    assert [metric["step"] for metric in run.read_metrics()] == [1, 3]
    assert (unlike(complete_lines(run.events)), unlike(complete_lines(run.metrics))) == ([2], [2])
    assert unlike(complete_lines(run.metrics, most_bytes=30)) == []
    shown = CliRunner().invoke(cli, ["status", run.run_id], env={"ZLAUNCH_RUNS": str(tmp_path)}).output
    assert "events.jsonl: 1 cut off, the first is line 2" in shown


def test_a_line_that_fits_only_in_part_is_an_error(mount: Mount) -> None:
    place = mount("size=8k")
    with pytest.raises(OSError, match="No space left") as caught:
        files.append_line(place / "a", "x" * 9000)
    assert caught.value.filename == str(place / "a")
    (place / "a").unlink()
    with pytest.raises(OSError, match="No space left") as caught:
        run_files.append_line(place / "b", {"x": "y" * 9000})
    assert caught.value.filename == str(place / "b")


def test_an_error_of_a_place_is_an_oserror_too_and_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    text = "cannot write /nowhere/at/all: the directory does not exist"
    with pytest.raises(StorageError, match=text) as caught, written():
        Path("/nowhere/at/all").write_text("")
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, TargetError)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(StorageError, match="the quota is used up"), written(tmp_path):
        raise OSError(errno.EDQUOT, "x")
    assert storage_error(OSError(errno.ECONNREFUSED, "x")) is None
    assert write_errors.explain(OSError(errno.EBADF, "x")) is None
    with pytest.raises(BlockingIOError), written():
        raise BlockingIOError(errno.EAGAIN, "x")


@pytest.mark.parametrize("number", sorted(write_errors.REASONS))
def test_every_reason_has_advice_and_names_the_place(number: int, tmp_path: Path) -> None:
    found = write_errors.explain(OSError(number, "x", str(tmp_path / "deep/er")))
    assert found is not None
    assert found[0].startswith(f"{tmp_path}/deep/er: ")
    assert len(found[1]) > 10


def test_the_record_of_the_end_fits_into_the_blocks_that_a_full_disk_has_left(mount: Mount) -> None:
    from launcher.node.agent.causes import failure_of
    from launcher.node.agent.launch import DEFAULTS, Names
    from launcher.node.agent.recorder import Recorder

    place = mount("size=64k")
    names = Names(place, 0)
    names.make()
    recorder = Recorder(names, {**DEFAULTS, "run_id": "r"}, 0)
    recorder.save()
    with pytest.raises(OSError, match="No space"):
        (place / "fill").write_bytes(b"x" * 70000)
    failure = failure_of("disk_full", "m" * 9000, log_tail=["x" * 900] * 20)
    recorder.save(state="FAILED", ended=1.0, failure=failure)
    record: Any = json.loads(Path(names.record).read_text())
    assert (record["state"], record["failure"]["cause"]) == ("FAILED", "disk_full")

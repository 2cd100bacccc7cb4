"""One command works on a run, or several that may; whoever comes second learns who is first."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.errors import UsageError
from launcher.node import run_files
from launcher.rundir import claims
from launcher.rundir.claims import Busy, Claim
from launcher.rundir.directory import RunDir, RunRecord

HOLD = """
import sys, time
from pathlib import Path
from launcher.rundir.claims import Claim
claim = Claim(Path(sys.argv[1]), "resume")
print("held", flush=True)
time.sleep(100)
"""
Hold = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Start a process that holds the directory."""
    started = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(params=["kernel locks", "no kernel locks"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have no locks, and some have locks that other machines do not see."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    if request.param == "no kernel locks":
        monkeypatch.setattr(fcntl, "flock", refuse)
        monkeypatch.setattr(claims, "ATTEMPTS", 2)


def of_another_machine(folder: Path, *, silent: float, **changes: object) -> Path:
    """Leave the file of a command on another machine that touched it so many seconds ago."""
    claim = Claim(folder, "resume")
    (file,) = (folder / run_files.CLAIMS).glob("*.json")
    text = json.loads(file.read_text())
    claim.release()
    file = folder / run_files.CLAIMS / "other-1-0.json"
    file.write_text(json.dumps({**text, "host": "other", "boot_id": "x", "pid": 17, "user": "ann", **changes}))
    os.utime(file, (time.time() - silent, time.time() - silent))
    return file


@pytest.mark.usefixtures("locks")
def test_the_second_learns_who_is_first_where_and_since_when(tmp_path: Path, hold: Hold) -> None:
    first = hold()
    with pytest.raises(Busy, match=rf"`zlaunch resume` of \w+ \(pid {first.pid} on .*, since ..:..:..\) works on"):
        Claim(tmp_path, "cancel", exclusive=False)


@pytest.mark.usefixtures("locks")
def test_a_command_that_was_killed_holds_nothing(tmp_path: Path, hold: Hold) -> None:
    first = hold()
    first.send_signal(signal.SIGKILL)
    first.wait()
    Claim(tmp_path, "resume").release()
    assert list((tmp_path / run_files.CLAIMS).iterdir()) == []


@pytest.mark.usefixtures("locks")
def test_several_may_end_or_read_a_run_while_nobody_starts_it(tmp_path: Path) -> None:
    shared = [Claim(tmp_path, "cancel", exclusive=False) for _ in range(3)]
    with pytest.raises(Busy, match=r"cancel.* and .*cancel.* work on"):
        Claim(tmp_path, "resume")
    for claim in shared:
        claim.release()
    first = Claim(tmp_path, "resume")
    for exclusive in (True, False):
        with pytest.raises(Busy):
            Claim(tmp_path, "resume", exclusive=exclusive)
    Claim(tmp_path, "pull", lock="pull").release()  # another lock
    first.release()
    Claim(tmp_path, "resume").release()


@pytest.mark.parametrize(("silent", "held"), [(0.0, True), (50.0, True), (61.0, False), (1e6, False)])
def test_a_command_of_another_machine_holds_as_long_as_it_touches_its_file(
    tmp_path: Path, silent: float, held: bool
) -> None:
    file = of_another_machine(tmp_path, silent=silent)
    if held:
        with pytest.raises(Busy, match=r"of ann \(pid 17 on other"):
            Claim(tmp_path, "resume")
    else:
        Claim(tmp_path, "resume").release()
    assert file.exists() is held


def test_a_command_of_this_machine_before_a_reboot_holds_nothing(tmp_path: Path) -> None:

    of_another_machine(tmp_path, silent=0.0, host=socket.gethostname())
    Claim(tmp_path, "resume").release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"lock": 1}'])
def test_a_damaged_file_holds_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / run_files.CLAIMS).mkdir()
    (tmp_path / run_files.CLAIMS / "x.json").write_text(text)
    Claim(tmp_path, "resume").release()


def test_a_command_at_work_touches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.02)
    claim = Claim(tmp_path, "resume")
    (file,) = (tmp_path / run_files.CLAIMS).glob("*.json")
    os.utime(file, (1, 1))
    end = time.monotonic() + 5
    while file.stat().st_mtime == 1:
        assert time.monotonic() < end
        time.sleep(0.01)
    claim.release()


def test_a_place_where_nothing_can_be_written_does_not_stop_a_cancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(claims.files, "write_atomic", full)
    first = Claim(tmp_path, "cancel", exclusive=False)
    with pytest.raises(UsageError, match="another command works on"):
        Claim(tmp_path, "resume")
    first.release()
    Claim(tmp_path / "absent", "cancel", exclusive=False).release()


def test_a_command_on_a_sweep_keeps_its_points_and_its_points_keep_it(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "s"
    folder.mkdir(parents=True)
    run = RunDir(tmp_path / "r")
    run.path.mkdir()
    run.save_record(RunRecord(run_id="r", name="r", backend="slurm", created=1.0, extra={"sweep": "s"}))
    every = Claim(folder, "resume")
    with pytest.raises(Busy):
        run.claim("resume")
    every.release()
    run.claim("resume")
    with pytest.raises(Busy):
        Claim(folder, "resume")
    run.release()
    Claim(folder, "resume").release()


@pytest.mark.usefixtures("locks")
def test_a_start_under_way_is_seen_and_not_hindered(tmp_path: Path, hold: Hold) -> None:
    assert not claims.is_being_started(tmp_path)
    with Claim(tmp_path, "cancel", exclusive=False):
        assert not claims.is_being_started(tmp_path)
    process = hold()
    assert claims.is_being_started(tmp_path)
    process.kill()
    process.wait()
    assert not claims.is_being_started(tmp_path)


def test_a_start_on_a_full_disk_is_seen_by_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.rundir.claims.Claim._write", lambda _: None)
    with Claim(tmp_path, "start"):
        assert claims.is_being_started(tmp_path)


def test_who_only_looks_at_a_run_keeps_nobody_from_starting_it(tmp_path: Path) -> None:
    (tmp_path / ".start.lock").touch()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            claims.is_being_started(tmp_path)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(200):
            Claim(tmp_path, "start").release()
    finally:
        stop.set()
        looker.join()

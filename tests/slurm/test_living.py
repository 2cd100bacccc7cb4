"""A job that was queued is found and believed, whatever became of its id, its record or a cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.rundir.directory import RunDir
from tests.beds.interleavings import COUNT, PROGRAM, check_answers, check_run, together
from tests.slurm.conftest import Zl, wait

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

WRAPPER = """#!/bin/sh
# a site's own sbatch: the real one, with lines of its own around the id
case "$*" in *test-only*) exec {sbatch} "$@" ;; esac
{lines}
"""


def wrap(zl: Zl, lines: str) -> None:
    place = zl.home / "site"
    place.mkdir(exist_ok=True)
    wrapper = place / "sbatch"
    wrapper.write_text(WRAPPER.format(sbatch=shutil.which("sbatch"), lines=lines))
    wrapper.chmod(0o755)
    zl.environ["PATH"] = f"{place}:{os.environ['PATH']}"


def jobs(zl: Zl, run: RunDir) -> list[str]:
    return zl.cluster.run(["squeue", "-h", "-n", run.run_id, "-o", "%A"]).stdout.split()


@pytest.mark.parametrize(
    "lines",
    [
        'echo "Checking quota ... ok"; {s} "$@"; echo "--> charged to project lab: 4.0 GPU hours"',
        'echo 2026; {s} "$@" | sed "s/$/;zlaunch/"; echo',
        '{s} "$@" >/dev/null; echo "Submitted your job, have a nice day"',
    ],
)
def test_the_job_id_is_found_whatever_a_sites_wrapper_prints(zl: Zl, lines: str) -> None:
    wrap(zl, lines.replace("{s}", str(shutil.which("sbatch"))))
    run = zl.submit("sleep 60", "--sbatch", "hold")
    assert [job.removesuffix(";zlaunch") for job in run.record.ids] == jobs(zl, run)
    assert zl.state(run) == "PENDING"
    assert "CANCELLED" in zl("cancel", run.run_id)
    assert jobs(zl, run) == []


def test_a_job_is_found_by_the_runs_name_where_its_id_was_never_recorded(zl: Zl) -> None:
    run = zl.submit("sleep 60", "--sbatch", "hold", "--name", "情感分类 ＡＢ عربي")
    (job,) = jobs(zl, run)
    run.update_record(ids=())
    assert zl.state(run) == "PENDING"
    assert run.record.ids == (job,)
    run.update_record(ids=(), state="FAILED")  # the launcher took its own trouble for the job's
    assert "cancel it first" in zl("resume", run.run_id, "--detach", code=2)
    assert jobs(zl, run) == [job]
    run.update_record(ids=(), state="FAILED")
    assert "already" not in zl("cancel", run.run_id)
    assert jobs(zl, run) == []
    assert "already CANCELLED" in zl("cancel", run.run_id)


def test_two_resumes_at_once_never_put_two_jobs_into_one_run(zl: Zl) -> None:
    run = zl.submit("sleep 60", "--sbatch", "hold")
    zl("cancel", run.run_id)
    both = [zl.start("resume", run.run_id, "--detach") for _ in range(3)]
    codes = sorted(process.wait(90) for process in both)
    assert codes == [0, 2, 2]
    assert len(jobs(zl, run)) == 1


OPERATIONS = [("resume", "--detach"), ("resume", "--detach"), ("cancel", "--now"), ("cancel",), ("status",), ("list",)]


@pytest.mark.timeout(120 + 90 * COUNT)
def test_whatever_the_order_of_commands_one_job_lives_and_the_record_is_true(zl: Zl) -> None:
    run = zl.submit(PROGRAM % 2)
    zl("cancel", run.run_id)
    for seed in range(COUNT):
        answers = together(zl.start, run.run_id, seed, OPERATIONS)
        check_answers(answers)
        assert len(jobs(zl, run)) <= 1, (seed, answers)
        if zl.state(run) not in ("RUNNING", "PENDING"):
            assert jobs(zl, run) == [], (seed, answers)
        zl("cancel", "--now", run.run_id)
        assert jobs(zl, run) == [], (seed, answers)
        assert zl.leftovers(run) == []
        check_run(run.path)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system without any space."""
    place = tmp_path / "full"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=False).returncode:
        pytest.skip("cannot mount")
    (place / "zlaunch").mkdir()
    try:
        (place / "fill").write_bytes(b"x" * (1 << 20))
    except OSError:
        pass
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_home_loses_no_job(zl: Zl, full: Path) -> None:
    zl.environ["XDG_CACHE_HOME"] = str(full)
    run = zl.submit("sleep 60", "--sbatch", "hold")
    assert list(run.record.ids) == jobs(zl, run)
    assert zl.state(run) == "PENDING"
    assert "CANCELLED" in zl("cancel", run.run_id)
    assert jobs(zl, run) == []


def test_a_run_directory_on_a_full_disk_can_be_cancelled(zl: Zl, full: Path) -> None:
    (full / "fill").unlink()
    zl.environ["ZLAUNCH_RUNS"] = str(full)
    subprocess.run(["mount", "-o", "remount,size=8m", full], check=True)
    output = zl("slurm", "--device", "cpu", "--json", "--", "sleep", "300")
    run = RunDir(Path(json.loads(output.splitlines()[-1])["directory"]))
    wait(lambda: zl.state(run) == "RUNNING")
    with (full / "fill").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    printed = zl("status", run.run_id)
    assert "RUNNING" in printed
    assert "Traceback" not in zl("cancel", run.run_id, code=None)
    assert jobs(zl, run) == []
    assert zl.leftovers(run) == []

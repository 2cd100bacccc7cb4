"""`zlaunch rm`: what is over goes whole, what lives or may live stays, and nothing outside is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from launcher.cli import cli
from launcher.commands.rm import confirm
from launcher.errors import RunNotFound
from launcher.lifecycle import removal, sweep
from launcher.lifecycle.sweep import Point, Sweep
from launcher.node import files
from launcher.rundir.directory import RunDir, RunRecord
from tests.beds.run_bed import out_of_reach

Zl = Callable[..., Result]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def zl(root: Path) -> Zl:
    def call(*words: str, code: int = 0) -> Result:
        done = CliRunner().invoke(cli, words, standalone_mode=False)
        assert (done.exception is not None) == bool(code), (done.exception, done.output)
        return done

    return call


def make_run(root: Path, run_id: str, *, backend: str = "local", state: str = "SUCCEEDED", **record: Any) -> RunDir:
    run = RunDir(root / run_id)
    run.write({"plan.json": json.dumps({"backend": backend}), "checkpoints/step-1/weights": "w" * 100_000})
    run.save_record(
        RunRecord(run_id=run_id, name="x", backend=backend, created=1.0, submitted=1.0, state=state, **record)
    )
    return run


def make_sweep(root: Path, sweep_id: str, *runs: str) -> Sweep:
    points = tuple(Point(run=run, values={}) for run in runs)
    made = Sweep(sweep_id=sweep_id, backend="local", created=1.0, points=points)
    sweep.save(made)
    return made


def test_runs_are_removed_after_a_question_and_say_what_they_free(zl: Zl, root: Path) -> None:
    run, other = (make_run(root, f"情感-{n}-20260101-000000-aaaa") for n in (1, 2))
    (root / ".secrets").mkdir()
    (root / ".secrets" / f"{run.run_id}.json").write_text("{}")
    assert "nobody can be asked" in str(zl("rm", "情感-1", code=2).exception)
    listed = zl("rm", "情感-1", "--dry-run", "--json")
    answer = json.loads(listed.stdout)
    assert answer["bytes"] >= 100_000
    assert answer["places"] == [{"host": "this machine", "path": str(run.path), "bytes": answer["bytes"]}]
    assert run.path.exists()
    shown = zl("rm", "情感-1", run.run_id, "--yes").output
    assert f"{answer['bytes']:,} bytes" in shown
    assert sorted(path.name for path in root.iterdir()) == [".secrets", other.run_id]
    assert list((root / ".secrets").iterdir()) == []
    assert "no run" in str(zl("rm", "情感-1", "-y", code=2).exception)


def test_what_lives_or_may_live_stays(zl: Zl, root: Path) -> None:
    running = make_run(root, "a-20260101-000000-aaaa", state="FAILED")
    environ = {**os.environ, "ZLAUNCH_RUN_ID": running.run_id}
    process = subprocess.Popen(["sleep", "60"], env=environ)
    try:
        assert "runs here" in str(zl("rm", "a", "-y", code=2).exception)
    finally:
        process.kill()
        process.wait()
    silent = out_of_reach(make_run(root, "b-20260101-000000-aaaa", backend="ssh", state="SUCCEEDED"))
    refusal = zl("rm", "b", "-y", code=1).exception
    assert "is not removed from its hosts" in str(refusal)
    assert "--local" in str(getattr(refusal, "hint", ""))
    pending = make_run(root, "c-20260101-000000-aaaa", state="PENDING")
    assert "cancel it first" in getattr(zl("rm", "c", "--local", "-y", code=2).exception, "hint", "")
    damaged = make_run(root, "d-20260101-000000-aaaa")
    damaged.run_json.write_text("{torn")
    zl("rm", "d", "-y", code=2)
    busy = make_run(root, "e-20260101-000000-aaaa")
    busy.claim("resume")
    assert "works on" in str(zl("rm", "e", "-y", code=2).exception)
    busy.release()
    assert all(run.path.exists() for run in (running, silent, pending, damaged, busy))
    zl("rm", "b", "e", "-y", "--local")
    assert not silent.path.exists()
    assert not busy.path.exists()


def test_nothing_outside_is_touched_and_links_are_not_followed(zl: Zl, root: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x" * 1_000_000)
    run = make_run(root, "a-20260101-000000-aaaa")
    (run.path / "inputs").symlink_to(precious)
    os.link(precious / "file", run.path / "linked")
    assert json.loads(zl("rm", "a", "--dry-run", "--json").stdout)["bytes"] < 1_000_000
    zl("rm", "a", "-y")
    assert (precious / "file").stat().st_size == 1_000_000
    elsewhere = make_run(tmp_path / "other", "b-20260101-000000-aaaa")
    assert "not in the directory of runs" in str(zl("rm", str(elsewhere.path), "-y", code=2).exception)
    (root / elsewhere.run_id).symlink_to(elsewhere.path)
    assert "symbolic link" in str(zl("rm", elsewhere.run_id, "-y", code=2).exception)
    assert elsewhere.plan_json.exists()


def test_an_interrupted_removal_is_finished_by_the_same_command_and_not_resumed(
    zl: Zl, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(root, "a-20260101-000000-aaaa", state="CANCELLED")

    def interrupted(_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "put_aside", interrupted)
        zl("rm", "a", "-y", code=130)
    assert run.checkpoint_steps() == []
    assert "half removed" in str(zl("resume", "a", code=2).exception)
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_tree", lambda path: interrupted(path) if Path(path).is_dir() else None)
        zl("rm", "a", "-y", code=130)
    assert [path.name for path in root.iterdir()] == [f".removing-{run.run_id}"]
    assert zl("list").stdout == ""
    assert "half removed" in zl("rm", run.run_id, "-y").output
    assert list(root.iterdir()) == []


def test_a_killed_rm_leaves_no_claim_and_what_the_next_one_removes(zl: Zl, root: Path) -> None:
    run = make_run(root, "a-20260101-000000-aaaa")
    code = (
        "import os, shutil\nfrom launcher.node import files\n"
        "files.remove_tree = lambda path: os._exit(9) if '.removing-a' in path and os.path.isdir(path) else None\n"
        "from launcher.cli import cli\ncli(['rm', 'a', '-y'])"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.returncode == 9, killed.stderr
    zl("rm", run.run_id, "-y")
    assert list(root.iterdir()) == []


def test_a_sweep_goes_whole_and_no_point_of_it_alone(zl: Zl, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(root, f"s-{n}-20260101-000000-aaaa") for n in range(2)]
    made = make_sweep(root, "s-sweep-20260101-000000-aaaa", *(run.run_id for run in runs), "s-2-20260101-000000-aaaa")
    refusal = zl("rm", runs[0].run_id, "-y", code=2).exception
    assert made.sweep_id in str(refusal)
    with sweep.claim(made, "start --sweep", in_turn=True):
        assert "works on" in str(zl("rm", made.sweep_id, "-y", code=2).exception)
    runs[1].update_record(state="PENDING")
    zl("rm", made.sweep_id, "-y", code=2)
    assert runs[0].path.exists()
    runs[1].update_record(state="FAILED")
    real, calls = removal.remove, []

    def once(one: removal.Removal) -> Any:
        calls.append(one.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(one)

    with monkeypatch.context() as patch:
        patch.setattr(removal, "remove", once)
        zl("rm", made.sweep_id, "-y", code=130)
    assert not runs[0].path.exists()
    assert "half removed" in str(zl("resume", made.sweep_id, code=2).exception)
    zl("rm", made.sweep_id, "-y")
    assert [path.name for path in root.iterdir()] == ["sweeps"]
    assert list((root / "sweeps").iterdir()) == []


def test_the_removed_directory_may_be_renamed_already_by_another_command(tmp_path: Path) -> None:
    folder, aside = tmp_path / "run", tmp_path / ".removing-run"
    folder.mkdir()
    aside.mkdir()
    (aside / "old").touch()
    assert files.put_aside(folder) == str(aside)
    assert (list(tmp_path.iterdir()), list(aside.iterdir())) == ([aside], [])
    assert files.put_aside(folder) == str(aside)
    files.remove_tree(aside)
    files.remove_tree(aside)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_and_names_given_twice(zl: Zl, root: Path) -> None:
    dry = RunDir(root / "dry-20260101-000000-aaaa")
    dry.write({"plan.json": '{"train": {"train": {}}}'})
    run = make_run(root, "a-20260101-000000-aaaa")
    made = make_sweep(root, "s-sweep-20260101-000000-aaaa", make_run(root, "s-0-20260101-000000-aaaa").run_id)
    zl("rm", dry.run_id, "a", run.run_id, str(run.path), made.sweep_id, "s-sweep", "--yes")
    assert [path.name for path in root.iterdir()] == ["sweeps"]


def test_a_no_removes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(root, "a-20260101-000000-aaaa")
    monkeypatch.setattr("launcher.commands.rm.sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "confirm", lambda *_, **__: False)
    with pytest.raises(click.exceptions.Exit):
        confirm("Remove it?", yes=False)
    assert run.path.exists()


def test_a_resume_that_comes_a_moment_after_the_removal_finds_no_run(zl: Zl, root: Path) -> None:
    run = make_run(root, "a-20260101-000000-aaaa", state="FAILED")
    zl("rm", "a", "-y")
    with pytest.raises(RunNotFound, match="was removed meanwhile"):
        run.claim("resume")
    assert not run.path.exists()

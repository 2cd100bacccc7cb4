"""`zlaunch clean`: dry runs, interrupted removals, old checkpoints and caches."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.node import processes
from launcher.rundir.directory import RunDir
from tests.launcher.lifecycle.test_removal import make_run, make_sweep


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ZLAUNCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "runs"


def clean(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["clean", "--json", "-y", *words], catch_exceptions=False, standalone_mode=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def make_dry(root: Path, run_id: str, *, noted: bool = True) -> RunDir:
    run = RunDir(root / run_id)
    run.write({"plan.json": '{"backend": "local"}', "job.yaml": "x" * 10_000})
    if noted:
        run.event("rendered")
    return run


def test_dry_runs_go_and_what_may_be_about_to_start_stays(root: Path) -> None:
    names = ("dry", "starting", "old", "hand", "point", "alone")
    dry, starting, old, by_hand, point, alone = (
        make_dry(root, f"{name}-20260101-000000-aaaa", noted=name not in ("starting", "old")) for name in names
    )
    for path in (old.path, *old.path.iterdir()):
        os.utime(path, (1.0, 1.0))
    (by_hand.path / "nodes").mkdir()
    run = make_run(root, "run-20260101-000000-aaaa")
    mixed = make_sweep(root, "mixed-20260101-000000-aaaa", point.run_id, run.run_id)
    rendered = make_sweep(root, "rendered-20260101-000000-aaaa", alone.run_id)
    waiting = make_sweep(root, "waiting-20260101-000000-aaaa", "not-yet-20260101-000000-aaaa")
    make_dry(root / "resume-dry-run", run.run_id)
    (root / ".removing-x-20260101-000000-aaaa").mkdir()
    (root / "notes").mkdir()
    seen = clean("--dry-run")
    assert all(path.exists() for path in (dry.path, old.path, alone.path))
    done = clean()
    assert seen["directories"] == done["directories"]
    assert done["bytes"] > 40_000
    left = {path.name for path in root.iterdir()}
    assert left == {starting.run_id, by_hand.run_id, point.run_id, run.run_id, "sweeps", "resume-dry-run", "notes"}
    assert {path.name for path in (root / "sweeps").iterdir()} == {mixed.sweep_id, waiting.sweep_id}
    assert rendered.sweep_id not in str(done["kept"])
    assert {row["name"] for row in done["kept"]} == {starting.run_id, by_hand.run_id, point.run_id}
    assert list((root / "resume-dry-run").iterdir()) == []
    assert clean()["directories"] == []


def make_checkpoints(run: RunDir, *steps: int, incomplete: tuple[int, ...] = ()) -> None:
    for step in steps:
        run.write({f"checkpoints/step-{step}/weights": "w" * 5000, f"checkpoints/step-{step}/COMPLETE": ""})
    for step in incomplete:
        run.write({f"checkpoints/step-{step}/weights": "w"})


def test_the_newest_checkpoints_and_the_best_one_are_kept(root: Path, tmp_path: Path) -> None:
    run = make_run(root, "a-20260101-000000-aaaa")
    make_checkpoints(run, 9, 20, 100, 110, incomplete=(115,))
    (run.checkpoints / "damaged-step-5").mkdir()
    (run.checkpoints / ".removing-step-3").mkdir()
    (tmp_path / "away").mkdir()
    (run.checkpoints / "step-4").symlink_to(tmp_path / "away")
    losses = [(0, 5.0), (20, 1.0), (110, 2.0)]
    run.metrics.write_text("".join(f'{{"step": {step}, "eval_loss": {loss}}}\n' for step, loss in losses))
    living = make_run(root, "b-20260101-000000-aaaa", state="FAILED")
    make_checkpoints(living, 1, 2, 3)
    process = subprocess.Popen(["sleep", "60"], env={**os.environ, "ZLAUNCH_RUN_ID": living.run_id})
    try:
        done = clean("--keep-last", "1")
    finally:
        process.kill()
        process.wait()
    assert {path.name for path in run.checkpoints.iterdir()} == {"step-20", "step-110", "step-4", "damaged-step-5"}
    assert living.checkpoint_steps() == [1, 2, 3]
    assert [row["name"] for row in done["kept"]] == [living.run_id]
    assert (tmp_path / "away").exists()
    living.update_record(state="FAILED")
    assert clean("--keep-last", "2")["directories"][0]["kind"] == "checkpoint"
    assert living.checkpoint_steps() == [2, 3]


def test_only_unused_tokens_and_bytecode_of_our_own_cache_are_removed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, converted = tmp_path / "cache" / "tokens", tmp_path / "cache" / "converted" / "x"
    bytecode = tmp_path / "cache" / "bytecode"
    for path in (tokens / "old", tokens / "new", tokens / "digests", converted, bytecode / "usr" / "lib"):
        path.mkdir(parents=True)
        (path / "data").write_text("x" * 5000)
    (tmp_path / "away").mkdir()
    (tokens / "link").symlink_to(tmp_path / "away")
    os.utime(tokens / "old", (time.time() - 90_000,) * 2)
    assert clean()["directories"] == []
    with monkeypatch.context() as patch:
        patch.setattr(processes, "run_processes", lambda: iter([(1, None, {})]))
        assert "lives on this machine" in clean("--caches")["kept"][0]["reason"]
    monkeypatch.setattr(processes, "run_processes", lambda: iter(()))
    done = clean("--caches")
    assert [row["path"] for row in done["directories"]] == [str(tokens / "old"), str(bytecode)]
    assert not bytecode.exists()
    assert sorted(path.name for path in tokens.iterdir()) == ["digests", "link", "new"]
    assert converted.exists()

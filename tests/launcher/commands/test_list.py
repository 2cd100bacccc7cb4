"""`zlaunch list` shows every run, whatever is wrong with one of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from launcher.cli import cli
from launcher.rundir.directory import RunDir, RunRecord
from tests.beds.run_bed import out_of_reach


def a_run(root: Path, name: str, backend: str, state: str) -> RunDir:
    run = RunDir(root / name)
    run.write({"plan.json": '{"train": {"train": {}}}'})
    run.save_record(RunRecord(run_id=name, name="x", backend=backend, created=1.0, state=state))
    return run


def test_a_run_that_does_not_answer_or_is_damaged_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    out_of_reach(a_run(tmp_path, "a-20260101-000000-aaaa", "ssh", "RUNNING"))
    a_run(tmp_path, "b-20260101-000001-aaaa", "local", "PENDING").run_json.write_text("{torn")
    a_run(tmp_path, "c-20260101-000002-aaaa", "local", "SUCCEEDED")
    a_run(tmp_path, "e-20260101-000004-aaaa", "local", "ODD")
    a_run(tmp_path, "f-20260101-000005-aaaa", "elsewhere", "PENDING")
    a_run(tmp_path, "d-20260101-000003-aaaa", "slurm", "RUNNING").plan_json.write_text("{torn")
    done = CliRunner().invoke(cli, ["list", "--json"], catch_exceptions=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["run"][0], row["state"], "error" in row) for row in rows] == [
        ("a", "RUNNING", True), ("b", None, True), ("c", "SUCCEEDED", False),
        ("d", None, True), ("e", None, True), ("f", None, True),
    ]  # fmt: skip
    assert "unknown state 'ODD' in its record" in rows[4]["error"]
    assert all(row["directory"] == str(tmp_path / row["run"]) for row in rows)
    shown = CliRunner().invoke(cli, ["list"], catch_exceptions=False)
    lines = shown.stdout.splitlines()
    assert lines[0].endswith("(last known state: no host of a-20260101-000000-aaaa can be reached)")
    assert lines[1].startswith("SUCCEEDED")
    assert "b-20260101-000001-aaaa" in shown.stderr
    assert "d-20260101-000003-aaaa" in shown.stderr
    assert "e-20260101-000004-aaaa: unknown state 'ODD' in its record" in shown.stderr
    assert f"{tmp_path / 'f-20260101-000005-aaaa' / 'run.json'}: no backend 'elsewhere'" in shown.stderr


def test_names_of_any_width_are_aligned_and_dry_runs_are_listed_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    for number, name in enumerate(("情感分类", "demo", "ＡＢＣ", "हिन्दी", "𠮷")):
        run = a_run(tmp_path, f"{name}-20260101-00000{number}-aaaa", "local", "SUCCEEDED")
        run.metrics.write_text('{"step": 3, "loss": 1.5}\n')
    dry = RunDir(tmp_path / "情感分类-20260101-000009-aaaa")
    dry.write({"plan.json": '{"backend": "slurm"}'})
    shown = CliRunner().invoke(cli, ["list"], catch_exceptions=False).stdout
    columns = {cell_len(line.partition("step 3")[0]) for line in shown.splitlines()}
    assert len(shown.splitlines()) == 5
    assert len(columns) == 1
    every = CliRunner().invoke(cli, ["list", "--all"], catch_exceptions=False).stdout.splitlines()
    assert every[-1].startswith("DRY RUN")
    assert every[-1].endswith(dry.run_id)
    rows = [json.loads(line) for line in CliRunner().invoke(cli, ["list", "--all", "--json"]).stdout.splitlines()]
    assert [row["state"] for row in rows] == ["SUCCEEDED"] * 5 + ["DRY RUN"]


def test_a_run_that_is_over_with_an_unknown_backend_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    a_run(tmp_path, "a-20260101-000000-aaaa", "../../x", "SUCCEEDED")
    (row,) = map(json.loads, CliRunner().invoke(cli, ["list", "--json"], catch_exceptions=False).stdout.splitlines())
    assert (row["state"], "names no known backend" in row["error"]) == ("SUCCEEDED", True)

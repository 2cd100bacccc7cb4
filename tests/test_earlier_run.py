"""A run directory that zlaunch 0.1.0 wrote is still listed, reported, shown, resumed and exported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.rundir.directory import RunDir
from tests.beds.places import ROOT

FIXTURE = ROOT / "tests" / "fixtures" / "run-0.1.0"
PLACES = "/home/user/project", "/opt/zlaunch/bin/python"
"""The project and the interpreter of the run, as they stand in its files."""
RECORDS = "".join(
    json.dumps({"instruction": "Say the number.", "input": word, "output": str(number)}) + "\n"
    for number, word in enumerate(("one", "two", "three", "four"), 1)
)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """The run in a project of this machine."""
    name = json.loads((FIXTURE / "run.json").read_text(encoding="utf-8"))["run_id"]
    run = RunDir(tmp_path / "runs" / name)
    shutil.copytree(FIXTURE, run.path)
    archive = run.path / "code.tar.xz"
    shutil.unpack_archive(archive, run.path, filter="data")
    archive.unlink()
    for name in ("train.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text(RECORDS, encoding="utf-8")
    move(run, *zip(PLACES, (str(tmp_path), sys.executable), strict=True))
    return run


def move(run: RunDir, *places: tuple[str, str]) -> None:
    """Name other places in the run's files."""
    for path in run.path.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".yaml", ".sh"):
            text = path.read_text(encoding="utf-8")
            for old, new in places:
                text = text.replace(old, new)
            path.write_text(text, encoding="utf-8")


def zlaunch(run: RunDir, *args: str, code: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment["ZLAUNCH_RUNS"] = str(run.path.parent)
    argv = [sys.executable, "-m", "launcher", *args]
    done = subprocess.run(argv, cwd=run.path.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout or done.stderr


def test_it_is_listed_reported_and_shown(run: RunDir) -> None:
    row = json.loads(zlaunch(run, "list", "--json"))
    assert (row["run"], row["state"], row["step"]) == (run.run_id, "SUCCEEDED", 4)
    row = json.loads(zlaunch(run, "report", "last", "--json"))
    assert (round(row["loss_first"], 4), round(row["loss_last"], 4), row["eval_loss"] < 5.5) == (5.7076, 5.5055, True)
    status = json.loads(zlaunch(run, "status", "last", "--json"))
    assert (status["world_size"], status["adapter"], status["failure"]) == (1, str(run.adapter), None)
    assert [(node["state"], node["ranks"][0]["exit_code"]) for node in status["nodes"]] == [("SUCCEEDED", 0)]
    shown = zlaunch(run, "status", "last")
    assert "checkpoints step 4" in shown
    assert "progress    step 4, loss 5.5055" in shown
    assert "step 4/4  loss 5.5055" in zlaunch(run, "logs", "last", "--rank", "0")


def test_its_state_follows_from_its_nodes_records(run: RunDir) -> None:
    run.update_record(state="RUNNING")
    assert json.loads(zlaunch(run, "status", "last", "--json"))["state"] == "SUCCEEDED"


def test_a_dry_run_of_a_resume_renders_its_job_for_this_version(run: RunDir) -> None:
    assert "has succeeded" in zlaunch(run, "resume", "last", code=2)
    rendered = json.loads(zlaunch(run, "resume", "last", "--set", "train.max_steps=6", "--dry-run", "--json"))
    train = json.loads((Path(rendered["directory"]) / "train.json").read_text(encoding="utf-8"))
    before = run.read_json(run.train_json)
    assert before is not None
    assert (train["run_id"], train["train"]["max_steps"]) == (run.run_id, 6)
    assert {**train["lora"], **before["lora"]} == train["lora"]


@pytest.mark.train
def test_it_continues_from_its_checkpoint(run: RunDir) -> None:
    summary = json.loads(zlaunch(run, "resume", "last", "--set", "train.max_steps=6", "--json").splitlines()[-1])
    assert summary["state"] == "SUCCEEDED"
    assert [event["step"] for event in run.read_events() if event["event"] == "resumed"] == [4]
    assert [metric["step"] for metric in run.read_metrics() if "loss" in metric][-2:] == [5, 6]
    assert (run.read_json(run.result_json) or {})["steps"] == 6


@pytest.mark.train
@pytest.mark.parametrize("environment", ["our own", "another"])
def test_it_is_exported_by_todays_code_and_by_its_snapshot(run: RunDir, tmp_path: Path, environment: str) -> None:
    if environment == "another":  # which gets the run's snapshot of the training program
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\necho "$PYTHONPATH" >"$0.path"\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        move(run, (sys.executable, str(python)))
    zlaunch(run, "export", "last", "--to", "merged", "--out", str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size > 100_000
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    if environment == "another":
        assert (tmp_path / "python.path").read_text().startswith(str(run.code))

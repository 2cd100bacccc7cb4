"""`zlaunch slurm` without a cluster: what it prints of a run that is not queued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.errors import UsageError


def slurm(*words: str) -> str:
    words = ("slurm", "--device", "cpu", "--nodes", "2", *words, "--", "true")
    done = CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    assert done.return_value == 0
    return done.stdout


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_in_json_is_the_object_that_other_backends_print() -> None:
    said = json.loads(slurm("--dry-run", "--json"))
    assert said["world_size"] == 2
    assert (Path(said["directory"]) / "train.sbatch").exists()


def test_a_dry_run_shows_the_script_and_its_json_comes_last_where_both_are_asked_for() -> None:
    assert slurm("--dry-run").startswith("#!/bin/bash")
    *script, last = slurm("--print-script", "--json").splitlines()
    assert script[0].startswith("#!/bin/bash")
    assert "directory" in json.loads(last)


def test_waiting_and_not_waiting_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="--wait and --detach"):
        slurm("--wait", "--detach")

"""The jobs of examples/: the commands that they name are understood, and small ones train."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from launcher.cli import cli

EXAMPLES = Path(__file__).parents[2] / "examples"
JOBS = sorted(EXAMPLES.glob("*.yaml"))
STARTING = ("local", "ssh", "slurm")


def commands(job: Path) -> list[list[str]]:
    """The commands in the comment at the top of a job."""
    head = job.read_text(encoding="utf-8").split("\nname:")[0]
    return [shlex.split(line) for line in re.findall(r"^# {3}zlaunch (.+)$", head, re.MULTILINE)]


def test_every_job_is_in_both_tables_and_every_task_and_backend_has_one() -> None:
    named = {path.name for path in JOBS}
    for page in ("README.md", "README.zh-CN.md"):
        assert set(re.findall(r"\]\((\S+\.yaml)\)", (EXAMPLES / page).read_text(encoding="utf-8"))) == named
    assert len(JOBS) >= 12


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_the_commands_of_a_job_are_right(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that start a run, as dry runs, on CPUs where this machine is the target; forecasts as they are."""
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(EXAMPLES.parent)
    spec = yaml.safe_load(job.read_text(encoding="utf-8"))
    tried = 0
    for words in commands(job):
        if words[0] not in (*STARTING, "plan") or "--sweep" in words:
            continue
        here = ["--device", "cpu"] if words[0] == "local" else []
        here += ["--set", "model.quantization=none"] if here and "quantization" in spec["model"] else []
        here += ["--container", "none"] if here and "container" in spec else []
        if here:  # GPUs that this machine may not have
            words = [word for place, word in enumerate(words) if "--gpus" not in (word, words[place - 1])]
        ending = [] if words[0] == "plan" else ["--dry-run"]
        result = CliRunner().invoke(cli, [*words, *here, *ending])
        assert result.exit_code == 0, result.output
        tried += 1
    assert tried or "--sweep" in str(commands(job))


@pytest.mark.parametrize(("job", "ranks"), [("qlora-70b", 1), ("fp8", 1), ("zero3", 8), ("summarization", 1)])
def test_a_job_fits_the_gpus_that_it_speaks_of(job: str, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    words = ["plan", f"examples/{job}.yaml", "--gpu", "h100", "--gpus", str(ranks), "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output


@pytest.mark.train
def test_a_small_job_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    monkeypatch.chdir(EXAMPLES.parent)
    small = ["--device", "cpu", "--set", "model.source=random", "--max-steps", "4", "--json"]
    result = CliRunner().invoke(cli, ["local", "examples/sentiment.yaml", *small])
    assert result.exit_code == 0, result.output
    (run,) = tmp_path.iterdir()
    found = json.loads((run / "result.json").read_text())
    assert found["steps"] == 4

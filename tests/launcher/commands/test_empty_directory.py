"""Commands where no job file lies: a batch that fits any number of ranks, and no settings of the demo by accident."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from launcher.cli import cli
from launcher.errors import BatchError, SpecError

RECORDS = '{"instruction": "a", "output": "b"}\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def call(*words: str) -> Result:
    return CliRunner().invoke(cli, [*words, "--dry-run", "--json"], standalone_mode=False)


def trained(done: Result) -> dict[str, Any]:
    assert done.exception is None, done.output
    directory = Path(json.loads(done.stdout.splitlines()[-1])["directory"])
    train: dict[str, Any] = json.loads((directory / "train.json").read_text())
    return train


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (("slurm", "--nodes", "4", "--device", "cpu"), 8),
        (("slurm", "--nodes", "4"), 32),
        (("slurm", "--nodes", "3", "--gpus-per-node", "7"), 21),
        (("slurm", "--nodes", "3", "--device", "cpu", "--smoke"), 15),
        (("slurm", "--nodes", "5", "--gpus-per-node", "8", "--smoke"), 40),
        (("local", "--device", "cpu", "--procs", "3"), 9),
        (("local", "--device", "cpu", "--procs", "11", "--smoke"), 11),
        (("local", "--device", "cpu", "--procs", "3", "--smoke", "--micro-batch-size", "4"), 12),
    ],
)
def test_a_job_without_a_batch_gets_one_that_its_ranks_can_share(words: tuple[str, ...], size: int) -> None:
    train = trained(call(*words))["train"]
    assert train["global_batch_size"] == size


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 6, 7, 12, 48, 63, 65, 100, 128, 1000])
def test_a_job_file_without_a_batch_fits_every_number_of_ranks(ranks: int) -> None:
    Path("train.jsonl").write_text(RECORDS)
    Path("job.yaml").write_text("{model: {path: gpt2}, data: {train: train.jsonl}}")
    done = call("slurm", "--device", "cpu", "--nodes", str(ranks))
    size = trained(done)["train"]["global_batch_size"]
    assert size % ranks == 0
    assert abs(size - 64) <= min(abs(ranks * other - 64) for other in range(1, 66))
    assert "demo" not in done.stderr


def test_a_batch_that_the_job_names_is_never_changed() -> None:
    Path("train.jsonl").write_text(RECORDS)
    Path("job.yaml").write_text("{model: {path: gpt2}, data: {train: train.jsonl}, train: {global_batch_size: 64}}")
    refused = call("slurm", "--device", "cpu", "--nodes", "3").exception
    assert isinstance(refused, BatchError)
    assert "63 and 66" in str(refused.hint)


def test_a_resumed_run_keeps_the_batch_that_it_began_with() -> None:
    first = call("slurm", "--device", "cpu", "--nodes", "3", "--smoke")
    directory = Path(json.loads(first.stdout.splitlines()[-1])["directory"])
    record = {"schema": 1, "run_id": directory.name, "name": "smoke", "backend": "slurm", "created": 1.0,
              "state": "FAILED", "zlaunch": "0.2.0"}  # fmt: skip
    (directory / "run.json").write_text(json.dumps(record))
    again = call("resume", directory.name, "--set", "slurm.nodes=5")
    assert trained(again)["train"]["global_batch_size"] == 15
    assert isinstance(call("resume", directory.name, "--set", "slurm.nodes=2").exception, BatchError)


@pytest.mark.parametrize("words", [("local", "--procs", "2", "--name", "mine"), ("slurm", "--nodes", "2", "-p", "x")])
def test_the_demo_says_that_it_is_the_demo(words: tuple[str, ...]) -> None:
    done = call(*words, "--device", "cpu")
    assert trained(done)["train"]["max_steps"] == 63
    assert done.stderr.count("zlaunch's demo") == 1
    swept = call(*words, "--device", "cpu", "--sweep", "env.POINT=1,2") if words[0] == "slurm" else done
    assert swept.stderr.count("zlaunch's demo") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("--model", "gpt2"),
        ("--train-data", "train.jsonl"),
        ("--max-steps", "5"),
        ("--seed", "1"),
        ("--set", "lora.r=8"),
        ("--set", "train={max_steps: 3}"),
        ("--set", "eval.before=false"),
        ("--sweep", "train.learning_rate=1e-4,2e-4"),
    ],
)
def test_flags_about_the_training_take_nothing_from_the_demo(words: tuple[str, ...]) -> None:
    Path("train.jsonl").write_text(RECORDS)
    done = call("slurm", "--device", "cpu", *words)
    assert isinstance(done.exception, SpecError)
    assert "is not set" in str(done.exception)
    assert "zlaunch init" in str(done.exception.hint) or "--train-data" in str(done.exception.hint)
    assert "demo" not in done.stderr


def test_flags_alone_make_a_job_of_their_own() -> None:
    Path("train.jsonl").write_text(RECORDS)
    done = call("slurm", "--device", "cpu", "--model", "gpt2", "--train-data", "train.jsonl")
    train = trained(done)
    assert (train["train"]["max_steps"], train["train"]["learning_rate"], train["data"]["max_length"]) == (
        None, 2e-4, 2048,
    )  # fmt: skip
    assert train["train"]["global_batch_size"] == 64
    assert "demo" not in done.stderr


@pytest.mark.parametrize("given", ["auto", "about 30", "30"])
def test_a_batch_may_be_named_about(given: str) -> None:
    train = trained(call("slurm", "--device", "cpu", "--nodes", "5", "--smoke", "--global-batch-size", given))
    assert train["train"]["global_batch_size"] == (65 if given == "auto" else 30)


@pytest.mark.parametrize("given", ["about", "about 0", "many", "-3", "0", "4.5"])
def test_a_batch_that_is_none_is_refused(given: str) -> None:
    refused = call("local", "--smoke", f"--global-batch-size={given}").exception
    assert isinstance(refused, SpecError)
    assert "train.global_batch_size: expected" in str(refused)

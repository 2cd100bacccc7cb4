"""Options of the launching commands: which have an effect, which are refused, and how the help shows them."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from launcher import cli
from launcher.commands import ignored
from launcher.commands.options import JOB_FLAGS, Flag
from launcher.errors import UsageError, ZlaunchError

JOB = "model: {path: x, source: random}\ndata: {train: a.jsonl}\n"
CPU = ("--device", "cpu")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def zlaunch(*words: str) -> str:
    done = CliRunner().invoke(cli.cli, words, standalone_mode=False, catch_exceptions=False)
    assert done.return_value in (0, None)
    return done.stdout


def refusal(*words: str) -> str:
    with pytest.raises(ZlaunchError) as caught:
        zlaunch(*words)
    assert caught.value.hint
    return f"{caught.value} -> {caught.value.hint}"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("slurm", "--procs-per-node", "4"), ("--procs-per-node", "--device cpu")),
        (("slurm", "--set", "slurm.procs_per_node=4"), ("--set slurm.procs_per_node", "--device cpu")),
        (("slurm", *CPU, "--gpus-per-node", "4"), ("--gpus-per-node", "--procs-per-node N")),
        (("slurm", "--array-limit", "2"), ("--array-limit", "--sweep")),
        (("slurm", "--workdir", "/x"), ("--workdir", "--login")),
        (("ssh", "--hostfile", "hosts", "--slots", "2"), ("--slots", "hostfile")),
        (("local", *CPU, "--container", "none", "--image", "x"), ("--image", "container.runtime is none")),
        (("local", *CPU, "--epochs", "2", "--max-steps", "2"), ("--epochs", "train.max_steps")),
        (("local", *CPU, "--sweep", "train.epochs=1,2", "--max-steps", "2"), ("--epochs", "train.max_steps")),
        (("local", *CPU, "--lora-r", "4", "--max-steps", "2", "--", "true"), ("--lora-r, --max-steps", "program")),
        (("local", *CPU, "--set", "eval.every=1", "--", "true"), ("--set eval.every", "program")),
        (("local", *CPU, "--smoke", "--", "true"), ("--smoke", "program")),
    ],
)
def test_an_option_without_effect_is_refused(words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    error = refusal(*words)
    assert [part for part in parts if part not in error] == []


def test_a_job_file_may_hold_keys_of_several_backends(here: Path) -> None:
    more = "train: {max_steps: 2, epochs: 2}\ncontainer: {runtime: none, image: x}\n"
    slurm = "slurm: {procs_per_node: 2, gpus_per_node: 4, array_limit: 2, workdir: /x}\n"
    (here / "job.yaml").write_text(JOB + more + slurm)
    zlaunch("slurm", "job.yaml", *CPU, "--print-script")
    zlaunch("slurm", "job.yaml", *CPU, "--print-script", "--", "true")
    zlaunch("local", "job.yaml", *CPU, "--dry-run", "--", "true")


def test_options_with_an_effect_are_accepted() -> None:
    zlaunch("slurm", *CPU, "--procs-per-node", "4", "--print-script")
    zlaunch("slurm", "--gpus-per-node", "4", "--print-script")
    zlaunch("slurm", *CPU, "--array-limit", "2", "--sweep", "lora.r=4,8", "--print-script")
    zlaunch("slurm", *CPU, "--login", "a", "--workdir", "/x", "--print-script")
    zlaunch("local", *CPU, "--max-restarts", "1", "--set", "env.A=b", "--dry-run", "--", "true")


def test_a_smoke_run_of_a_job_with_a_program_trains(here: Path) -> None:
    (here / "own.yaml").write_text("program: [nosuch.py]\n")
    zlaunch("local", "own.yaml", *CPU, "--smoke", "--dry-run")
    assert list(here.glob("runs/*/train.json"))


@pytest.mark.parametrize("words", [("local", *CPU), ("local", *CPU, "--dry-run"), ("slurm", "--print-script")])
def test_a_missing_python_file_is_refused(words: tuple[str, ...]) -> None:
    assert "no such program: my program.py" in refusal(*words, "--", "my program.py")


def test_a_python_file_of_another_machine_or_an_image_is_not_checked_here() -> None:
    zlaunch("slurm", *CPU, "--login", "a", "--print-script", "--", "theirs.py")
    zlaunch("slurm", *CPU, "--container", "apptainer", "--image", "a.sif", "--print-script", "--", "/opt/theirs.py")


def test_an_interpreter_that_cannot_train_is_refused_before_anything_starts(here: Path) -> None:
    assert "no interpreter /nosuch" in refusal("local", *CPU, "--python", "/nosuch")
    bare = here / "bare python"  # without site-packages
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    error = refusal("local", *CPU, "--python", str(bare))
    assert f"torch, transformers, peft, msgspec not installed for {bare}" in error
    assert "training environment" in error
    assert not (here / "runs").exists()
    zlaunch("local", *CPU, "--python", "/on/another/day", "--dry-run")


def test_a_missing_template_is_named_once_with_a_hint(here: Path) -> None:
    error = refusal("slurm", "--template", "nosuch", "--print-script")
    assert error.count(str(here / "nosuch")) == 1
    assert "Errno" not in error
    assert "zlaunch templates eject" in error


def test_init_says_what_to_set_in_the_job() -> None:
    assert "set model and data" in zlaunch("init", "new.yaml")


@pytest.mark.parametrize(
    ("command", "idle"),
    [
        (("data", "check"), {"name", "max_restarts", "container__runtime", "train__learning_rate", "lora__r"}),
        (("doctor", "ssh"), {"name", "max_restarts", "train__epochs", "lora__r", "train__seed"}),
        (("reap",), {"ssh__slots", "ssh__master_addr", "ssh__workdir"}),
    ],
)
def test_a_command_lists_no_option_that_has_no_effect_there(command: tuple[str, ...], idle: set[str]) -> None:
    found: click.Command = cli.cli
    for name in command:
        assert isinstance(found, click.Group)
        known = found.get_command(click.Context(found), name)
        assert known is not None
        found = known
    assert not {str(option.name).removeprefix("key__") for option in found.params} & idle


def test_both_filters_of_hosts_at_once_are_refused() -> None:
    error = refusal("ssh", "--hosts", "a,b", "--include", "a", "--exclude", "b")
    assert "--include and --exclude do not go together" in error


def test_a_refusal_is_a_wrong_request() -> None:
    with pytest.raises(UsageError):
        zlaunch("slurm", "--array-limit", "2")


@pytest.mark.parametrize("flag", JOB_FLAGS, ids=lambda flag: flag.key)
def test_a_refusal_calls_a_flag_by_its_name(flag: Flag) -> None:
    assert ignored._flag(flag.key) == flag.names


def sections(*words: str, columns: int = 80) -> dict[str, list[str]]:
    """{heading: lines below it} of a command's help."""
    text = CliRunner().invoke(cli.cli, [*words, "--help"], terminal_width=columns).stdout
    assert max(map(len, text.splitlines())) <= columns
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            found[line[:-1]] = []
        elif found and line:
            found[list(found)[-1]].append(line)
    return found


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    ("command", "groups"),
    [
        (("local",), ["Job", "Training", "Local", "Container", "Start", "Output"]),
        (("ssh",), ["Job", "Training", "Host", "Container", "Start", "Output"]),
        (("slurm",), ["Job", "Training", "Slurm", "Container", "Start", "Output"]),
        (("doctor", "ssh"), ["Job", "Training", "Host", "Container", "Output"]),
        (("data", "check"), ["Job", "Training", "Output"]),
    ],
)
def test_help_groups_the_options_of_a_command_in_one_margin(
    command: tuple[str, ...], groups: list[str], columns: int
) -> None:
    found = sections(*command, columns=columns)
    assert list(found) == [f"{group} options" for group in groups]
    assert any(line.startswith("  -h, --help ") for line in found["Output options"])
    rows = [line for lines in found.values() for line in lines if "  " in line.strip()]
    assert len({line.index(line.rpartition("  ")[2]) for line in rows}) == 1

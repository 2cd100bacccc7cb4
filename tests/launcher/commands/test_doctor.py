"""`zlaunch doctor` of this machine, whose nvidia-smi is a script, and what it prints at 80 columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from launcher.backends.checklist import Cell, Row, fit_columns
from launcher.cli import cli
from launcher.commands.doctor import print_rows


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def doctor(*words: str, smi: str, folder: Path) -> Result:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return CliRunner().invoke(cli, ["doctor", *words], standalone_mode=False)


def test_an_old_driver_and_a_volta_are_reported_with_the_remedy(machine: Path) -> None:
    done = doctor(
        "local", "--smoke", "--json", smi="echo '0, GPU-1, Tesla V100, 32510, 7.0, 535.104.05'", folder=machine
    )
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["gpus"]["text"] == "1 (Tesla V100)"
    advice = row["driver"]["advice"]
    assert "driver 535.104.05 is too old for CUDA 13.0: update it to 580 or newer" in advice
    assert "Tesla V100 (compute capability 7.0) is too old" in advice
    assert "https://download.pytorch.org/whl/cu128" in advice
    assert not (machine / "runs").exists()


def test_a_broken_driver_blocks_in_its_own_words_also_without_a_subcommand(machine: Path) -> None:
    for words in (["--json"], ["local", "--smoke", "--json"]):
        done = doctor(*words, smi="echo 'NVML: Driver/library version mismatch'; exit 18", folder=machine)
        row = json.loads(done.stdout.splitlines()[-1])
        assert (done.return_value, row["blocks"], row["gpus"]["level"]) == (1, True, "bad")
        assert "Driver/library version mismatch" in row["gpus"]["advice"]
    assert doctor("local", "--smoke", "--device", "cpu", smi="exit 18", folder=machine).return_value == 0


def test_more_gpus_than_there_are_and_another_python_block(machine: Path) -> None:
    one = "echo '0, GPU-1, NVIDIA H100, 81559, 9.0, 580.65'"
    done = doctor("local", "--smoke", "--gpus", "2", "--python", "/no/python", "--json", smi=one, folder=machine)
    assert json.loads(done.stdout.splitlines()[-1])["python"]["level"] == "bad"
    done = doctor("local", "--smoke", "--gpus", "2", "--json", smi=one, folder=machine)
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["driver"] == {"text": "580.65", "level": "ok", "advice": ""}
    assert "2 needed" in row["gpus"]["advice"]


def test_tables_fit_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"check-{i}" for i in range(13)]
    rows = [Row(f"node{i}", {name: Cell(f"{name} is fine", "ok") for name in names}) for i in range(3)]
    rows[1].cells["check-12"] = Cell("bad", "bad", "a long advice " * 10)
    print_rows([Row("cluster", {"slurm": Cell("26.05")}), *rows, Row("node4", {"check-0": Cell("no", "bad", "off")})])
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "node4: check-0: off"
    assert max(len(line) for line in lines[:-1]) <= 80
    assert lines[-1].startswith("node1: check-12: a long advice a long advice")
    assert [name for name in names if not any(name in line for line in lines)] == []
    assert [name for group in fit_columns(rows, names, 80) for name in group] == names

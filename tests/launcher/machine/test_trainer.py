"""Modules of the training program as child processes: their environment and their refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from launcher.machine import trainer


def test_a_child_finds_the_training_program_wherever_it_starts_and_keeps_the_users_own_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/their own")
    ask = "import train, sys; print(train.__file__); print('/their own' in sys.path)"
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env=trainer.environment(), check=True, capture_output=True, text=True
    )
    place, own = done.stdout.splitlines()
    assert Path(place).parent.name == "train"
    assert own == "True"
    monkeypatch.delenv("PYTHONPATH")
    assert trainer.environment(tmp_path)["PYTHONPATH"] == str(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":/abs::.:rel")  # the empty entries and `.` mean the working directory
    assert trainer.environment(tmp_path)["PYTHONPATH"] == f"{tmp_path}:/abs:{os.getcwd()}/rel"
    monkeypatch.delenv("PYTHONPATH")
    changed = {"PYTHONPATH": "", "PYTHONIOENCODING": ""}
    assert {**trainer.environment(tmp_path), **changed} == {**os.environ, **changed}


def test_hints_are_separated_from_the_message():
    stderr = (
        "a library's line\nerror[ZL-DATA-02]: 2 records of a.jsonl cannot be read\n  a.jsonl:2: no answer\n"
        "  -> correct them\n  -> or skip them\n"
    )
    assert trainer.told(stderr) == trainer.Told(
        ("a library's line",),
        "ZL-DATA-02",
        ("2 records of a.jsonl cannot be read", "  a.jsonl:2: no answer"),
        "correct them; or skip them",
    )
    assert trainer.told("Killed\nerror: of an earlier version\n").message == ("of an earlier version",)
    assert trainer.told("") == trainer.Told((), "", (), None)

"""A short part of each campaign, with a seed of its own; `make torture` runs them whole."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.torture.__main__ import CAMPAIGNS, END, HEAD, PAGE, with_rows
from tests.torture.bounded import Wrong, judge_all

SHORT = {"job_files": 120, "hostfiles": 400, "data_files": 150, "run_directories": 60, "chat_templates": 60}
SEED = 20


@pytest.mark.parametrize("name", SHORT)
def test_damaged_input_is_refused_or_means_what_it_says(name: str) -> None:
    outcome = importlib.import_module(f"tests.torture.{name}").main(SHORT[name], SEED)
    assert outcome.found == (), outcome.summary


@pytest.mark.train
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used() -> None:
    words = [sys.executable, "-m", "tests.torture.checkpoints", "150", str(SEED)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the one before used, the damaged set aside" in done.stdout


def test_faults_leave_no_process_and_a_run_that_can_be_resumed() -> None:
    from tests.torture import faults

    outcome = faults.main(4, SEED, ("local",))
    assert outcome.found == (), outcome.summary


def test_a_case_that_is_wrong_leaves_evidence_of_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.torture import evidence
    from tests.torture.fault_beds import Case, LocalBed

    monkeypatch.setattr(evidence, "PLACE", tmp_path / "evidence")
    case = Case(LocalBed(), tmp_path, "the-secret-of-the-case")
    run = case.runs / "tiny-20260101-000000-ab12"
    (run / "nodes").mkdir(parents=True)
    (run / "plan.json").write_text("{}")
    (run / "nodes" / "node-0.json").write_text("{}")
    (case.runs / ".secrets").mkdir()
    (case.runs / ".secrets" / "x.json").write_text(case.secret)
    environ = {**os.environ, "ZLAUNCH_RUN_ID": run.name, "TORTURE_SECRET": case.secret}
    left = subprocess.Popen(["sleep", "60"], env=environ)
    try:
        place = evidence.take(case, 7, "processes left")
    finally:
        left.kill()
        left.wait()
    found = (place / "processes.txt").read_text()
    assert f"== {left.pid}: sleep 60" in found
    assert "-- status: Name:\tsleep" in found
    assert (place / "runs" / run.name / "nodes" / "node-0.json").exists()
    assert not [path for path in place.rglob("*") if path.is_file() and case.secret in path.read_text()]


def test_a_case_that_hangs_crashes_or_takes_too_much_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.torture.bounded.WALL_SECONDS", 5.0)
    monkeypatch.setattr("tests.torture.bounded.SECONDS", 0.1)

    def judge(number: int) -> str:
        match number:
            case 1:
                raise Wrong("other value: 5 instead of 6")
            case 2:
                os._exit(3)
            case 3:
                while True:
                    os.sched_yield()
            case 4:
                bytearray(2 << 30)
            case 5:
                before = time.process_time()
                while time.process_time() < before + 0.15:
                    pass
        return "accepted"

    tally = judge_all(judge, range(7))
    assert tally.verdicts == {"accepted": 2}
    assert {number: kind for kind, (_, number, _) in tally.found.items()} == {
        1: "wrong: other value",
        2: "process ended with status 768",
        3: "no end within 5 s",
        4: next(kind for kind in tally.found if kind.startswith("MemoryError at")),
        5: "over 0.1 s",
    }


def test_the_page_keeps_one_row_per_campaign() -> None:
    page = PAGE.read_text(encoding="utf-8")
    row = "| hostfiles and filters | x | 1 | 2 | y | none |"
    assert with_rows(page, [row]).partition(END)[0].count("| hostfiles and filters |") == 1
    assert HEAD in with_rows(page, [row])
    assert with_rows(with_rows(page, [row]), [row]) == with_rows(page, [row])


def test_every_campaign_exists() -> None:
    names = {path.stem for path in Path(__file__).parent.glob("*.py")}
    assert set(CAMPAIGNS) <= names

"""`zlaunch report` shows every run, whatever is wrong with one of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from launcher.cli import cli
from launcher.commands.report import table
from launcher.lifecycle import sweep
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState
from launcher.show.page import write
from tests.beds.run_bed import out_of_reach


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def a_run(root: Path, name: str, backend: str, state: str, result: dict[str, Any] | None = None) -> RunDir:
    run = RunDir(root / f"{name}-20260101-000000-aaaa")
    run.write(
        {"plan.json": '{"train": {"train": {}}}', **({} if result is None else {"result.json": json.dumps(result)})}
    )
    run.save_record(RunRecord(run_id=run.run_id, name=name, backend=backend, created=1.0, state=state))
    return run


def report(*words: str) -> Result:
    return CliRunner().invoke(cli, ["report", *words], catch_exceptions=False)


def test_runs_that_do_not_answer_or_are_damaged_do_not_hide_the_others(root: Path) -> None:
    away = out_of_reach(a_run(root, "away", "ssh", "RUNNING"))
    torn = a_run(root, "torn", "local", "PENDING")
    torn.run_json.write_text("{torn")
    half = a_run(root, "half", "local", "SUCCEEDED")
    half.result_json.write_text("{torn")
    good = a_run(root, "good", "local", "SUCCEEDED", {"loss_last": 1.5})
    points = sweep.new_sweep("s", "local", [(run, {"lora.r": 8}) for run in (away, torn, half, good)])
    sweep.save(points)
    rows = [json.loads(line) for line in report(points.sweep_id, "--json").stdout.splitlines()]
    assert [(row["run"], row["state"], row.get("loss_last")) for row in rows] == [
        (away.run_id, "RUNNING", None), (torn.run_id, None, None), (half.run_id, "SUCCEEDED", None),
        (good.run_id, "SUCCEEDED", 1.5),
    ]  # fmt: skip
    assert [row.get("error", "").partition("\n")[0].partition(":")[0] for row in rows] == [
        f"no host of {away.run_id} can be reached", f"cannot read {torn.run_json}",
        f"cannot read {half.result_json}", "",
    ]  # fmt: skip
    done = report("away", "torn", "half", "good")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [row["run"] for row in rows]
    assert f"{away.run_id}: no host of {away.run_id} can be reached" in done.stderr
    assert f"{torn.run_id}: cannot read {torn.run_json}" in done.stderr


@pytest.mark.parametrize("command", ["report", "status"])
def test_the_stacks_of_a_run_that_hung_stand_side_by_side_with_the_odd_rank_marked(root: Path, command: str) -> None:
    run = a_run(root, "hung", "local", "SUCCEEDED")
    groups = [
        {"ranks": [0, 2, 3, 4], "hosts": ["a"], "doing": "step 3", "frames": ["wait (d.py:1)"], "odd": False},
        {"ranks": [1], "hosts": ["b"], "doing": "step 3", "frames": ["loop [x] (e.py:1)"], "odd": True},
    ]
    run.event("submitted")
    run.event("hang", message="the run hangs", stacks=groups)
    shown = CliRunner().invoke(cli, [command, run.run_id], catch_exceptions=False, env={"COLUMNS": "100"}).output
    assert "the run hangs" in shown
    heads, doing = (next(line for line in shown.splitlines() if text in line) for text in ("differs", "step 3"))
    assert [cell.strip() for cell in heads.strip("┃").split("┃")] == ["rank 1 <- differs", "ranks 0, 2-4"]
    assert doing.count("step 3") == 2
    assert "loop [x] (e.py:1)" in shown
    as_json = CliRunner().invoke(cli, [command, run.run_id, "--json"], catch_exceptions=False).output
    assert "loop [x] (e.py:1)" in as_json
    run.event("submitted")  # a resume
    assert "hangs" not in CliRunner().invoke(cli, [command, run.run_id], catch_exceptions=False).output


def test_what_differs_between_two_runs_and_what_cannot_be_compared_stand_below_the_table(root: Path) -> None:
    for name, rate, data in (("one", 1e-3, "a.jsonl"), ("two", 2e-3, "b.jsonl")):
        run = a_run(root, name, "local", "SUCCEEDED", {"eval": {"after": {"loss": 1.0, "records": 4}}})
        plan = {"train": {"train": {"learning_rate": rate, "epochs": 1}, "data": {"eval": data}}}
        run.plan_json.write_text(json.dumps(plan))
    lines = report("one", "two").output.splitlines()
    assert [line.split() for line in lines[4:7]] == [
        ["differs", "one", "two"],
        ["train.learning_rate", "0.001", "0.002"],
        ["data.eval", "a.jsonl", "b.jsonl"],
    ]
    assert lines[7] == "scored on other records than one, so not comparable with it: two"


def test_a_damaged_sweep_file_is_reported(root: Path) -> None:
    points = sweep.new_sweep("s", "local", [])
    (sweep.save(points) / "sweep.json").write_text("{torn")
    done = CliRunner().invoke(cli, ["report", points.sweep_id])
    assert str(done.exception).startswith("cannot read ")


def test_the_held_out_records_have_their_columns(root: Path) -> None:
    before, after = {"loss": 2.0, "accuracy": 0.25}, {"loss": 1.0, "accuracy": 0.75}
    a_run(root, "good", "local", "SUCCEEDED", {"eval": {"before": before, "after": after}})
    a_run(root, "without", "local", "SUCCEEDED", {"eval": {"before": None, "after": None}})
    good, without = (json.loads(line) for line in report("good", "without", "--json").stdout.splitlines())
    assert (good["eval_loss"], good["accuracy_before"], good["accuracy_after"]) == (1.0, 0.25, 0.75)
    assert "eval_loss" not in without


def test_a_run_directory_may_be_given_by_path(root: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path / "copied", "good", "local", "SUCCEEDED", {"loss_last": 1.5})
    (row,) = (json.loads(line) for line in report(str(run.path), "--json").stdout.splitlines())
    assert (row["state"], row["loss_last"]) == ("SUCCEEDED", 1.5)


def test_the_page_of_one_run_and_of_several_is_written(root: Path) -> None:
    runs = [a_run(root, name, "local", "SUCCEEDED", {"loss_first": 2.0, "loss_last": 1.5}) for name in ("one", "two")]
    page = root.parent / "new/page.html"
    assert report("one", "--html", str(page)).stdout.strip() == str(page)
    assert "Too few held-out records to judge" in page.read_text(encoding="utf-8")
    torn = a_run(root, "torn", "local", "SUCCEEDED")
    torn.result_json.write_text("{torn")
    done = report(*(run.run_id for run in (*runs, torn)), "--html", str(page))
    text = page.read_text(encoding="utf-8")
    assert done.exit_code == 0
    assert "Best: one" in text
    assert f"cannot read {torn.result_json}" in text


def test_a_page_of_nothing_or_in_no_place_is_refused(root: Path) -> None:
    a_run(root, "torn", "local", "SUCCEEDED").result_json.write_text("{torn")
    a_run(root, "good", "local", "SUCCEEDED", {"loss_last": 1.5})
    done = report_error("torn", "--html", str(root.parent / "page.html"))
    assert "nothing to show" in str(done)
    assert "cannot write" in str(report_error("good", "--html", "/proc/page.html"))


def report_error(*words: str) -> BaseException | None:
    result = CliRunner().invoke(cli, ["report", *words])
    assert result.exit_code != 0
    return result.exception


def test_a_run_that_ended_gets_its_page_once_and_a_problem_is_only_a_warning(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(root, "one", "local", "SUCCEEDED", {"loss_last": 1.5})
    assert write.write_if_new(run, RunState.RUNNING) is None
    assert write.write_if_new(run, RunState.SUCCEEDED) == run.report
    first = run.report.stat().st_mtime_ns
    assert write.write_if_new(run, RunState.SUCCEEDED) == run.report
    assert run.report.stat().st_mtime_ns == first
    os.utime(run.report, (1, 1))  # the run was resumed meanwhile
    write.write_if_new(run, RunState.SUCCEEDED)
    assert run.report.stat().st_mtime > 1
    run.report.unlink()
    run.report.mkdir()
    (run.report / "kept").touch()
    os.utime(run.report, (1, 1))
    assert write.write_if_new(run, RunState.SUCCEEDED) is None
    assert "warning: the report page was not written: cannot write" in capsys.readouterr().err


def test_the_page_of_a_users_program_shows_its_output(root: Path) -> None:
    run = a_run(root, "mine", "local", "SUCCEEDED")
    run.write({"plan.json": '{"train": null}', "logs/node-0/rank-0.log": "first\n<b>last</b>\n"})
    page = root.parent / "page.html"
    report("mine", "--html", str(page))
    text = page.read_text(encoding="utf-8")
    assert "The program has ended" in text
    assert "first\n&lt;b&gt;last&lt;/b&gt;" in text


def test_names_of_any_width_are_aligned() -> None:
    lines = table([{"run": "情感分类-1", "loss": 1.5}, {"run": "demo-1", "loss": 2.5}]).splitlines()
    assert [cell_len(line.rpartition("  ")[0]) for line in lines] == [len("情感分类-1") + 4] * 3

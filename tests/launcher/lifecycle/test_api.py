"""`import zlaunch`: jobs, plans and runs from Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import zlaunch
from launcher.job.load import read_job
from launcher.job.spec import JobSpec
from launcher.lifecycle import submit
from tests.beds.places import ROOT


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def of_program(text: str, **values: object) -> zlaunch.Job:
    return zlaunch.Job(device="cpu", program=["bash", "-c", text], **values)


class TestJob:
    def test_values_win_over_the_file_and_paths_are_relative_to_their_place(self, tmp_path):
        folder = tmp_path / "jobs"
        folder.mkdir()
        (folder / "job.yaml").write_text("name: first\ndata: {train: a.jsonl}\ntrain: {epochs: 2, max_steps: 5}\n")
        job = zlaunch.Job(folder / "job.yaml", data={"eval": Path("b.jsonl")}, train={"epochs": 3, "max_steps": None})
        spec = job.spec
        assert (spec.name, spec.train.epochs, spec.train.max_steps) == ("first", 3.0, None)
        assert (spec.data.train, spec.data.eval) == (str(folder / "a.jsonl"), str(tmp_path / "b.jsonl"))

    def test_its_text_is_a_job_file_that_says_the_same(self, tmp_path):
        job = zlaunch.Job(name="一", env={"A": 1}, ssh={"hosts": ("a", "b")}, lora={"r": 4}, program=("true",))
        (tmp_path / "job.yaml").write_text(job.yaml(), encoding="utf-8")
        assert read_job(tmp_path / "job.yaml").spec == job.spec != JobSpec()

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"trian": {"epochs": 3}}, "trian"),
            ({"train": {"epochs": "many"}}, "train.epochs"),
            ({"train": {"num_train_epochs": 3}}, "train.epochs"),
            ({"train": 3}, "train"),
            ({"lora.r": -1}, "lora.r"),
            ({"model": {"path": object()}}, "model.path"),
            ({"data": {"train": {1, 2}}}, "data.train"),
        ],
    )
    def test_a_mistake_is_refused_with_its_key(self, values, said):
        with pytest.raises(zlaunch.SpecError, match=said) as refused:
            zlaunch.Job(**values)
        assert "zlaunch.Job()" in refused.value.text or "job" in refused.value.text


class TestPlan:
    def test_it_says_what_the_command_says(self):
        job = zlaunch.Job(model={"path": "llama3-8b"}, local={"gpus": 2})
        plan = zlaunch.plan(job, gpu="h100")
        argv = ["plan", "--model", "llama3-8b", "--gpu", "h100", "--gpus", "2", "--json"]
        row = json.loads(
            subprocess.run([sys.executable, "-m", "launcher", *argv], check=True, capture_output=True, cwd=ROOT).stdout
        )
        assert (plan.fits, plan.world_size, plan.gpu_assumed) == (True, 2, False)
        assert (plan.peak_bytes, dict(plan.parts)) == (row["predicted_peak_bytes"], row["parts"])
        assert {key: vars(item) for key, item in plan.settings.items()} == row["settings"]
        assert plan.tokens_per_second == row["tokens_per_second"] > 0

    def test_a_job_that_does_not_fit_says_what_would_help(self):
        plan = zlaunch.plan(zlaunch.Job(model={"path": "70b", "quantization": "none"}), gpu="4090")
        assert not plan.fits
        assert plan.peak_bytes > plan.room_bytes
        assert plan.error
        assert plan.changes
        assert (plan.tokens_per_second, plan.settings) == (None, {})

    def test_it_refuses_what_cannot_be_planned(self):
        with pytest.raises(zlaunch.UsageError, match="program of its own"):
            zlaunch.plan(of_program("true"), gpu="h100")
        with pytest.raises(zlaunch.SpecError, match="no model"):
            zlaunch.plan(zlaunch.Job(), gpu="h100")


class TestRun:
    def test_a_program_runs_and_its_logs_are_here(self, root):
        run = zlaunch.run(of_program("echo one; echo two; echo 三", name="words"))
        assert run.result(timeout=60) == {}
        assert (run.state, run.path.parent) == ("SUCCEEDED", root)
        lines = [line.strip() for line in run.logs(rank=0)]
        assert lines == ["one", "two", "三"]
        assert [line.strip() for line in run.logs(rank=0, tail=1)] == ["三"]
        assert [found.id for found in zlaunch.runs()] == [run.id]
        assert zlaunch.find_run("words").id == zlaunch.find_run("last").id == run.id
        assert run.picture().state == "SUCCEEDED"

    def test_a_failure_says_why(self):
        run = zlaunch.run(of_program("echo gone wrong; exit 7"))
        with pytest.raises(zlaunch.RunFailed, match="FAILED") as failed:
            run.result(timeout=60)
        assert "7" in failed.value.text
        assert run.wait() == "FAILED"

    def test_it_can_be_waited_for_cancelled_and_resumed(self):
        run = zlaunch.run(of_program("test -e done || { touch done; sleep 600; }; echo again"))
        with pytest.raises(TimeoutError, match="goes on"):
            run.wait(timeout=0.3)
        with pytest.raises(zlaunch.UsageError, match="is RUNNING") as refused:
            run.resume()
        assert "zlaunch cancel" in refused.value.hint
        assert run.cancel() == "CANCELLED" == run.state
        assert run.cancel() == "CANCELLED"
        assert run.resume().wait(timeout=60) == "SUCCEEDED"
        with pytest.raises(zlaunch.UsageError, match="has succeeded"):
            run.resume()

    def test_what_can_be_refused_is_refused_before_a_directory_is_made(self, root, monkeypatch):
        monkeypatch.delenv("NOT_SET", raising=False)
        for job, said in [
            (zlaunch.Job(device="cpu"), "model.path"),
            (zlaunch.Job(device="cpu", program=["absent.py"]), "no such program"),
            (of_program("true", local={"python": "/absent/python"}), "/absent/python"),
            (of_program("true", secrets=["NOT_SET"]), "NOT_SET"),
            (of_program("true", local={"gpus": 3}), "contradict"),
        ]:
            with pytest.raises(zlaunch.ZlaunchError, match=said):
                zlaunch.run(job)
        with pytest.raises(zlaunch.UsageError, match="no backend"):
            zlaunch.run(of_program("true"), on="cloud")
        assert not root.exists()

    def test_no_run_of_a_name_is_an_error(self):
        assert zlaunch.runs() == []
        with pytest.raises(zlaunch.RunNotFound):
            zlaunch.find_run("nothing")

    def test_notes_of_the_plan_are_warnings_at_the_callers_line(self, monkeypatch):
        prepare = submit.prepare

        def with_note(*given: Any, **named: Any) -> Any:
            directory, plan = prepare(*given, **named)
            return directory, msgspec.structs.replace(plan, notes=("mind this",))

        monkeypatch.setattr(submit, "prepare", with_note)
        with pytest.warns(UserWarning, match="mind this") as heard:
            run = zlaunch.run(of_program("true"))
        assert heard[0].filename == __file__
        assert run.wait(60) == "SUCCEEDED"


def test_the_notebook_trains_and_shows_what_it_says(tmp_path):
    """Its code runs as a user's would, cell after cell, with the checkout as the working directory's neighbor."""
    cells = json.loads((ROOT / "examples/python.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "cells.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SUCCEEDED") == 2
    assert "loss" in done.stdout

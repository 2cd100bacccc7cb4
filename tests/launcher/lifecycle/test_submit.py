"""Checks before anything is queued or sent, and interrupted starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.base import FakeBackend
from launcher.errors import DataError, TargetError
from launcher.job import spec
from launcher.job.load import read_job
from launcher.lifecycle import checks, submit
from launcher.lifecycle.interrupted import StartInterrupted
from launcher.machine import facts
from launcher.plan.types import RunPlan
from launcher.rundir.directory import RunDir
from tests.beds.plans import RUN_ID, make, target

GOOD = '{"instruction": "1 + 1", "output": "2"}\n'


def job(train: Path, on_error: str = "stop", **data: str) -> spec.JobSpec:
    flags = {"model.path": "m", "data.train": str(train), "data.on_error": on_error}
    return read_job(None, (), {**flags, **{f"data.{key}": value for key, value in data.items()}}).spec


def check(asked: spec.JobSpec) -> int | None:
    return checks.check_records(asked, facts.model_directory(asked.model.path, asked.env)).train


def test_bad_records_are_reported_with_file_and_line_before_a_run_is_queued(tmp_path: Path) -> None:
    bad = tmp_path / "bad 数据.jsonl"
    bad.write_text(GOOD + "not json\n" + '{"instruction": "no answer"}\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        check(job(bad))
    assert "2 records of" in str(caught.value)
    assert f"{bad.name}:2" in str(caught.value)
    assert f"{bad.name}:3" in str(caught.value)
    assert "data.on_error=skip" in str(caught.value.hint)
    check(job(bad, "skip"))


def test_good_records_and_files_of_other_machines_pass(tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text(GOOD, encoding="utf-8")
    assert check(job(good)) == 1
    assert check(job(tmp_path / "on the cluster only.jsonl")) is None


def test_a_job_whose_records_were_counted_says_what_they_come_to(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.jsonl").write_text(GOOD * 2, encoding="utf-8")
    sources = [{"path": str(tmp_path / "two.jsonl"), "weight": 1.5}]
    asked = read_job(None, (), {"model.path": "m", "data.train": sources, "train.global_batch_size": 8})
    _, plan = submit.prepare(asked, target())
    (note,) = [note for note in plan.notes if note.startswith("data.train: ")]
    assert note.endswith("set train.global_batch_size below 3")
    _, unknown = submit.prepare(asked, target(), records_checked=True)
    assert not [note for note in unknown.notes if note.startswith("data.train: ")]


def test_a_file_of_only_broken_records_is_refused_even_with_on_error_skip(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("not json\n", encoding="utf-8")
    with pytest.raises(DataError):
        check(job(bad, "skip"))


def model_files(place: Path, **config: str) -> Path:
    """A checkpoint without weights: its config.json, and a safetensors file that only names its tensors."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    names = ["lm_head", "model.norm", *(f"model.layers.0.self_attn.{name}_proj" for name in "qkvo")]
    header = json.dumps({f"{name}.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names})
    (place / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    return place


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "v_porj"], "lora.target_modules: this model has no module 'v_porj'"),
        (["layers.0.self_attn.q_proj"], ""),
        (".*\\.[qv]_proj", ""),
        (".*\\.c_attn", "matches the full name of no module"),
        ("auto", ""),
        (["lm_head", "k_proj"], ""),
    ],
)
def test_target_modules_are_compared_with_the_names_in_the_models_files(
    tmp_path: Path, targets: object, message: str
) -> None:
    flags = {"model.path": str(model_files(tmp_path / "m")), "lora.target_modules": targets}
    asked = read_job(None, (), flags).spec
    if not message:
        check(asked)
        return
    with pytest.raises(DataError, match=message) as caught:
        check(asked)
    assert caught.value.hint


def test_a_model_of_other_names_is_left_to_the_training_program(tmp_path: Path) -> None:
    place = model_files(tmp_path / "m", model_type="chatglm")
    check(read_job(None, (), {"model.path": str(place), "lora.target_modules": ["query"]}).spec)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_model_without_a_readable_config_is_refused(tmp_path: Path, text: str | None) -> None:
    place = model_files(tmp_path / "m")
    (place / "config.json").unlink()
    if text is not None:
        (place / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"model\.path: .*config\.json"):
        check(read_job(None, (), {"model.path": str(place)}).spec)


@pytest.mark.parametrize("backend", ["local", "slurm"])
def test_records_are_read_before_a_plan_is_made_on_every_backend(tmp_path: Path, backend: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "no answer"}\n' * 9)
    with pytest.raises(DataError, match="9 records of") as caught:
        submit.prepare(read_job(None, (), {"model.path": "m", "data.train": str(bad)}), target(backend=backend))
    assert str(caught.value).count("the key 'output' is missing") == 3


def test_a_split_of_a_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(GOOD)
    (tmp_path / "test.jsonl").write_text("not json")
    check(job(Path(f"{tmp_path}:train")))
    for path, message in ((Path(f"{tmp_path}:test"), "bad JSON"), (tmp_path, "several splits: test, train")):
        with pytest.raises(DataError, match=message):
            check(job(path))


def test_a_system_message_that_begins_with_a_dash_is_no_option(tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text(GOOD, encoding="utf-8")
    check(job(good, system="-brief"))


def test_an_interrupted_start_is_cancelled(tmp_path: Path) -> None:
    class Interrupted(FakeBackend):
        def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
            raise KeyboardInterrupt

    run, backend = RunDir(tmp_path / RUN_ID), Interrupted()
    run.write({})
    with pytest.raises(KeyboardInterrupt):
        submit.submit(run, make(), backend, {})
    assert backend.cancelled == [RUN_ID]
    assert run.record.state == "CANCELLED"


@pytest.mark.parametrize("trouble", [TargetError("no host answers", hint="plug it in"), KeyboardInterrupt()])
def test_a_start_that_cannot_be_cancelled_is_recorded_as_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trouble: BaseException
) -> None:
    class Stuck(FakeBackend):
        def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
            raise KeyboardInterrupt

        def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
            raise trouble

    run = RunDir(tmp_path / RUN_ID)
    run.write({})
    with pytest.raises(StartInterrupted) as caught:
        submit.submit(run, make(), Stuck(), {})
    assert not caught.value.cancelled
    assert run.record.state == "RUNNING"
    message = capsys.readouterr().err
    assert f"zlaunch cancel {RUN_ID}" in message
    assert ("no host answers\n  -> plug it in" if isinstance(trouble, TargetError) else "interrupted again") in message

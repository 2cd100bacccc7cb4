"""`zlaunch plan`: which job it is about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.errors import CompatibilityError, SpecError, UsageError


def test_without_a_job_it_is_that_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["plan", "--gpu", "h100", "--json"]
    with pytest.raises(SpecError, match="no model to plan for"):
        CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    Path("job.yaml").write_text("model: {path: llama3-8b}\nlora: {r: 4}\n")
    said = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)
    named = json.loads(CliRunner().invoke(cli, [*words, "--model", "llama3-8b"], catch_exceptions=False).stdout)
    assert said["model"] == named["model"] == "llama3-8b"
    assert said["trainable"] < named["trainable"]  # a model that is named is planned for alone


def test_a_job_with_a_program_of_its_own_is_refused_as_that(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("program: [my.py]\n")
    with pytest.raises(UsageError, match="runs a program of its own"):
        CliRunner().invoke(cli, ["plan", str(job)], standalone_mode=False, catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "assumed"), [((), True), (("--gpu", "h100"), False), (("--gpu-memory", "80GiB"), False)]
)
def test_a_gpu_that_nobody_named_and_nobody_found_is_said_to_be_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], assumed: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plan = ["plan", "--model", "llama3-8b", *words]
    said = json.loads(CliRunner().invoke(cli, [*plan, "--json"], catch_exceptions=False).stdout)
    assert said["gpu_assumed"] is assumed
    assert ("--gpu names another" in CliRunner().invoke(cli, plan, catch_exceptions=False).stdout) is assumed
    tight = ["--model", "70b", "--set", "model.quantization=none"]
    refused = CliRunner().invoke(cli, ["plan", *tight, *words], standalone_mode=False)
    assert isinstance(refused.exception, CompatibilityError)
    assert ("--gpu names another" in refused.stderr) is assumed
    told = CliRunner().invoke(cli, ["plan", *tight, *words, "--json"], standalone_mode=False)
    assert json.loads(told.stdout)["gpu_assumed"] is assumed

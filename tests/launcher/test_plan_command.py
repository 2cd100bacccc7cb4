"""`zlaunch plan`: which job it is about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.errors import SpecError


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

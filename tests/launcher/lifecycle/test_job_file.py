"""A new job file names its schema so that an editor finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.job.load import read_job
from launcher.job.reference import json_schema
from launcher.lifecycle.job_file import address, commented_job
from launcher.machine import installation


@pytest.mark.parametrize("full", [False, True])
def test_the_first_line_names_the_schema_of_this_installation(tmp_path: Path, full: bool) -> None:
    text = commented_job("some/model", full=full)
    first, _, _ = text.partition("\n")
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert named != first
    assert named == address(json_schema.FILE)
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    job = read_job(tmp_path / "job.yaml").spec
    assert (job.model.path, job.data.train, job.train.epochs) == ("some/model", f"{tmp_path}/data/train.jsonl", 3)


def test_a_path_with_blanks_becomes_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "path", lambda kind: Path("/my programs/环境") / kind)
    assert address("job.schema.json") == "file:///my%20programs/%E7%8E%AF%E5%A2%83/templates/job.schema.json"
    monkeypatch.setattr(installation, "path", lambda kind: Path("/opt/z+1") / kind)
    assert address("job.schema.json") == "/opt/z+1/templates/job.schema.json"

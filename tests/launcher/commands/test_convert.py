"""`zlaunch convert` starts this project's converter."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli


def test_convert_runs_this_projects_converter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    source = tmp_path / "a model"
    source.mkdir()
    done = CliRunner().invoke(cli, ["convert", str(source), str(tmp_path / "out")], standalone_mode=False)
    assert done.return_value == 2
    assert "no config.json in it" in capfd.readouterr().err

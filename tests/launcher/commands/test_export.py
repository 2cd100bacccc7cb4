"""`zlaunch export`: where the result goes, and what has none yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.errors import UsageError
from tests.launcher.commands.conftest import AdapterRun


def test_export_writes_into_the_run_unless_out_is_given(adapter_run: AdapterRun, tmp_path: Path) -> None:
    run = adapter_run.run
    adapter_run.zlaunch("export", "demo", "--to", "ollama")
    assert adapter_run.called()[1:] == ["-m", "train.export", "--run-dir", str(run.path), "--to", "ollama", "--out",
                                        str(run.path / "export-ollama")]  # fmt: skip
    adapter_run.zlaunch("export", "demo", "--out", str(tmp_path / "x"))
    assert adapter_run.called()[-3:] == ["merged", "--out", str(tmp_path / "x")]


def test_a_comparison_is_handed_to_the_training_program(adapter_run: AdapterRun, tmp_path: Path) -> None:
    adapter_run.zlaunch("export", "demo", "--out", str(tmp_path / "x"), "--verify", "--json", "--prompts", "3")
    assert adapter_run.called()[5:] == ["--to", "merged", "--out", str(tmp_path / "x"), "--prompts", "3",
                                        "--max-new-tokens", "32", "--verify", "--json"]  # fmt: skip
    adapter_run.zlaunch("export", "demo", "--server", "http://h:8000", "--server-model", "-m")
    assert adapter_run.called()[5:] == ["--server=http://h:8000", "--server-model=-m", "--prompts", "8",
                                        "--max-new-tokens", "32"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "why"), [(["--json"], "add --verify"), (["--verify", "--server", "http://h"], "give one of them")]
)
def test_options_without_effect_are_refused(adapter_run: AdapterRun, words: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        CliRunner().invoke(cli, ["export", "demo", *words], standalone_mode=False, catch_exceptions=False)


@pytest.mark.parametrize("words", [["eval"], ["export"], ["chat"]])
def test_a_run_without_an_adapter_is_refused(adapter_run: AdapterRun, words: list[str]) -> None:
    (adapter_run.run.adapter / "adapter_config.json").unlink()
    with pytest.raises(UsageError, match="has no adapter yet"):
        CliRunner().invoke(cli, [*words, "demo"], standalone_mode=False, catch_exceptions=False)

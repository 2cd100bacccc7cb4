"""`zlaunch chat`: the settings that reach the training program."""

from __future__ import annotations

from click.testing import CliRunner

from launcher.cli import cli
from tests.launcher.commands.conftest import AdapterRun


def test_chat_passes_its_settings_on(adapter_run: AdapterRun) -> None:
    adapter_run.zlaunch("chat", "demo", "--temperature", "0.7", "--base", "--system", "简短", "--device", "cpu")
    module, *words = adapter_run.called()[2:]
    assert module == "train.chat"
    assert set(words) == {"--run-dir", str(adapter_run.run.path), "--max-new-tokens=512", "--temperature=0.7", "--base",
                          "--system=简短", "--device=cpu"}  # fmt: skip


def test_a_system_message_may_begin_with_a_dash(adapter_run: AdapterRun) -> None:
    adapter_run.zlaunch("chat", "demo", "--system", "-x")
    assert "--system=-x" in adapter_run.called()


def test_zero_new_tokens_are_refused(adapter_run: AdapterRun) -> None:
    done = CliRunner().invoke(cli, ["chat", "demo", "--max-new-tokens", "0"])
    assert done.exit_code == 2


def test_chat_for_programs_is_the_training_programs_own(adapter_run: AdapterRun) -> None:
    adapter_run.zlaunch("chat", "demo", "--json")
    assert "--json" in adapter_run.called()

"""`zlaunch generate`: the prompt and the settings that reach the training program."""

from __future__ import annotations

from tests.launcher.commands.conftest import AdapterRun


def test_generate_passes_its_settings_on(adapter_run: AdapterRun) -> None:
    adapter_run.zlaunch("generate", "demo", "你好 $(x)", "--temperature", "0.7", "--base")
    module, *words = adapter_run.called()[2:]
    assert module == "train.generate"
    assert set(words) == {"--run-dir", str(adapter_run.run.path), "--prompt=你好 $(x)", "--max-new-tokens=256",
                          "--temperature=0.7", "--base", "--device=auto"}  # fmt: skip


def test_prompt_and_system_message_may_begin_with_a_dash(adapter_run: AdapterRun) -> None:
    adapter_run.zlaunch("generate", "demo", "--system", "-y", "--", "-x")
    assert {"--system=-y", "--prompt=-x"} <= set(adapter_run.called())

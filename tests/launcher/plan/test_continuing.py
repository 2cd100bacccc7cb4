"""plan.json of a job that continues an adapter shows what is trained."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.errors import CompatibilityError
from tests.beds.plans import make

ADAPTER = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


def test_the_plan_has_the_settings_of_the_adapter_and_says_so():
    plan = make("lora.adapter=/a", adapter_config=ADAPTER)
    assert (plan.train.lora.r, plan.train.lora.alpha, plan.train.lora.target_modules) == (8, 16, ("q_proj",))
    reasons = {reason.setting: reason.reason for reason in plan.reasons}
    assert "the adapter" in reasons["lora.r"]
    assert any(note.startswith("lora.r = 8") for note in plan.notes)


def test_other_settings_of_the_job_are_refused_together():
    with pytest.raises(CompatibilityError, match=r"lora.r is 32.*; lora.target_modules is \[v_proj\]") as caught:
        make("lora.adapter=/a", "lora.r=32", "lora.target_modules=[v_proj]", adapter_config=ADAPTER)
    assert "leave these settings out" in caught.value.hint


def test_an_adapter_that_only_peft_continues_decides_the_engine():
    more = {**ADAPTER, "bias": "all"}
    assert make("lora.adapter=/a", adapter_config=more, device="cuda").train.train.engine == "peft"
    with pytest.raises(CompatibilityError, match="only PEFT continues an adapter with bias"):
        make("lora.adapter=/a", "train.engine=fused", adapter_config=more, device="cuda")


def test_an_adapter_that_cannot_be_read_here_is_left_to_the_run():
    assert make("lora.adapter=/a", "lora.r=32").train.lora.r == 32


def test_a_dry_run_and_a_plan_read_the_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "adapter"
    place.mkdir()
    (place / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (tmp_path / "d.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "job.yaml").write_text("model: {path: ./model}\ndata: {train: d.jsonl}\nlora: {adapter: adapter}\n")
    dry = ["local", "job.yaml", "--device", "cpu", "--dry-run"]
    run = CliRunner().invoke(cli, dry, standalone_mode=False, catch_exceptions=False)
    assert "lora.r = 8: the setting of the adapter" in run.output
    (train_json,) = tmp_path.glob("runs/*/train.json")
    assert json.loads(train_json.read_text())["lora"]["r"] == 8
    for words in ([*dry, "--set", "lora.r=32"], ["plan", "job.yaml", "--model", "llama3-8b", "--set", "lora.r=32"]):
        with pytest.raises(CompatibilityError, match=r"lora\.r is 32"):
            CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)

"""`zlaunch plan`: the job, the GPU, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.commands.plan import plan, table
from launcher.errors import CompatibilityError, SpecError, UsageError
from launcher.lifecycle.forecast import Planned, quantized, report
from launcher.machine import facts
from launcher.plan.fastest import choose, in_fp8
from launcher.plan.situation import model_of
from tests.beds.planning import MODELS, asked, sample
from train.memory import GIB


def test_the_default_job_is_that_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["plan", "--gpu", "h100", "--json"]
    with pytest.raises(SpecError, match="no model to plan for"):
        CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    Path("job.yaml").write_text("model: {path: llama3-8b}\nlora: {r: 4}\n")
    plan_report = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)
    named = json.loads(CliRunner().invoke(cli, [*words, "--model", "llama3-8b"], catch_exceptions=False).stdout)
    assert plan_report["model"] == named["model"] == "llama3-8b"
    assert plan_report["trainable"] < named["trainable"]  # a model that is named is planned for alone


def test_a_job_with_a_program_is_refused(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("program: [my.py]\n")
    with pytest.raises(UsageError, match="runs a program of its own"):
        CliRunner().invoke(cli, ["plan", str(job)], standalone_mode=False, catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "assumed"), [((), True), (("--gpu", "h100"), False), (("--gpu-memory", "80GiB"), False)]
)
def test_a_gpu_that_is_neither_given_nor_found_is_reported_as_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], assumed: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plan = ["plan", "--model", "llama3-8b", *words]
    plan_report = json.loads(CliRunner().invoke(cli, [*plan, "--json"], catch_exceptions=False).stdout)
    assert plan_report["gpu_assumed"] is assumed
    assert ("choose another with --gpu" in CliRunner().invoke(cli, plan, catch_exceptions=False).stdout) is assumed
    tight = ["--model", "70b", "--set", "model.quantization=none"]
    refused = CliRunner().invoke(cli, ["plan", *tight, *words], standalone_mode=False)
    assert isinstance(refused.exception, CompatibilityError)
    assert ("choose another with --gpu" in refused.stderr) is assumed
    result = CliRunner().invoke(cli, ["plan", *tight, *words, "--json"], standalone_mode=False)
    assert json.loads(result.stdout)["gpu_assumed"] is assumed


def plan_report(*words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(
        CliRunner().invoke(cli, ["plan", *words, "--json"], standalone_mode=False).stdout
    )
    return answer


def test_plan_refuses_what_a_run_would_refuse(tmp_path: Path) -> None:
    for setting, hint in (
        ("train.engine=fused", "train.engine: auto"),
        ("train.offload=cpu", "train.zero_stage: 2"),
        ("lora.init=pissa", "lora.init: default"),
    ):
        words = ["--model", "llama3-8b", "--gpu", "h100", "--set", "model.quantization=int8", "--set", setting]
        words += ["--set", "train.zero_stage=0"]
        refused = CliRunner().invoke(cli, ["plan", *words], standalone_mode=False)
        assert isinstance(refused.exception, CompatibilityError)
        assert hint in str(refused.exception.hint)


def test_a_plan_counts_the_sequences_that_the_chat_template_makes(tmp_path: Path) -> None:
    from tests.train.templating.test_chat_template import QWEN3, SMOLLM2

    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"model_type": "qwen3", **shape, "intermediate_size": 128, "vocab_size": 1000}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    record = {"query": "q" * 60, "response": "a" * 60, "history": [["q" * 60, "a" * 60]] * 3}
    (tmp_path / "a.jsonl").write_text((json.dumps(record) + "\n") * 640)
    (tmp_path / "job.yaml").write_text("model: {path: model}\ndata: {train: a.jsonl}\ntrain: {global_batch_size: 64}\n")
    words = [str(tmp_path / "job.yaml"), "--gpu", "h100"]
    for template, turns, per_record in ((QWEN3, "auto", 4), (QWEN3, "joined", 1), (SMOLLM2, "auto", 1)):
        (tmp_path / "model/chat_template.jinja").write_text(template)
        work = plan_report(*words, "--set", f"data.turns={turns}")["work"]
        assert work["steps"] == 10 * per_record
        assert ("turns" in work) == (per_record > 1)
    (tmp_path / "model/chat_template.jinja").write_text(QWEN3)
    assert 2.2 < plan_report(*words)["work"]["turns"]["times"] < 2.6  # (1 + 2 + 3 + 4) / 4, and headers
    text = CliRunner().invoke(cli, ["plan", *words], catch_exceptions=False).stdout
    assert "one sequence per answer, 4.0 per record" in text


def test_hours_grow_with_the_data_and_are_left_out_if_a_file_cannot_be_counted(tmp_path: Path) -> None:
    job, one, two = tmp_path / "job.yaml", tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(('{"instruction": "%s", "output": "b"}\n' % ("x" * 600)) * 640)
    two.write_text(one.read_text() * 2)

    def work(train: str) -> dict[str, Any] | None:
        job.write_text(f"model: {{path: llama3-8b}}\ndata: {{train: {train}}}\n")
        found: dict[str, Any] | None = plan_report(str(job), "--gpu", "h100")["work"]
        return found

    short, long, weighted = work("one.jsonl"), work("two.jsonl"), work("[{path: one.jsonl, weight: 2}]")
    assert short
    assert long
    assert (short["steps"], long["steps"]) == (10, 20)
    assert long["hours"] == pytest.approx(2 * short["hours"])
    assert weighted == long
    one.write_text(one.read_text() * 2 + '{"instruction": "a", "output": "b"}\n')
    begun = work("one.jsonl")
    assert begun
    assert begun["steps"] == 21  # as the training program counts: the last step is begun anew
    assert work("[one.jsonl, other.parquet]") is None
    assert work("[one.jsonl, absent.jsonl]") is None


def test_trainable_parameters_follow_from_the_adapted_modules(tmp_path: Path) -> None:
    words = ("--model", "llama3-8b", "--gpu", "h200")
    few = plan_report(*words, "--set", "lora.target_modules=[q_proj, v_proj]", "--set", "lora.r=8")
    assert few["trainable"] == 3_407_872
    whole = plan_report(*words, "--set", "lora.modules_to_save=[lm_head]")
    assert whole["trainable"] == plan_report(*words)["trainable"] + 128256 * 4096


def test_every_setting_has_a_reason_and_the_type_is_one() -> None:
    settings = plan_report("--model", "llama3-8b", "--gpu", "v100-32", "--set", "model.quantization=nf4")["settings"]
    assert settings["model.dtype"]["value"] == "float16"
    assert "no bfloat16" in settings["model.dtype"]["reason"]
    asked = plan_report("--model", "llama3-8b", "--gpu", "h200", "--set", "model.dtype=float16")["settings"]
    assert asked["model.dtype"]["value"] == "float16"
    assert "loss scaling" in asked["model.dtype"]["reason"]
    assert "per pass x 1 ranks" in settings["train.gradient_accumulation_steps"]["reason"]


@pytest.mark.parametrize("config", [{"num_local_experts": 8, "num_hidden_layers": 2}, {"hidden_size": 64}])
def test_an_unknown_model_is_refused_with_a_hint(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    refused = CliRunner().invoke(cli, ["plan", "--model", str(tmp_path), "--gpu", "h100"], standalone_mode=False)
    assert isinstance(refused.exception, SpecError)
    assert "--model" in str(refused.exception.hint)


def test_a_gpu_without_a_reported_memory_needs_gpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "local_gpus", lambda: (facts.Gpu(0, "NVIDIA GB10", 0, 12.1),))
    refused = CliRunner().invoke(cli, ["plan", "--model", "llama3-8b"], standalone_mode=False)
    assert isinstance(refused.exception, SpecError)
    assert "--gpu-memory" in str(refused.exception.hint)


def test_the_command_prints_every_part_and_every_reason(tmp_path):
    job_file = tmp_path / "job.yaml"
    (tmp_path / "train.jsonl").write_text('{"instruction": "%s", "output": "b"}\n' % ("x" * 600) * 100)
    job_file.write_text("model: {path: Qwen/Qwen3-8B}\ndata: {train: train.jsonl}\n")
    done = CliRunner().invoke(plan, [str(job_file), "--gpu", "a100-80", "--gpus", "2"], standalone_mode=False)
    assert done.exception is None
    for word in ("weights", "activations", "logits", "optimizer", "train.zero_stage", "tokens/s", "2 steps"):
        assert word in done.output
    done = CliRunner().invoke(plan, [str(job_file), "--gpu", "a100-80", "--json"], standalone_mode=False)
    answer = json.loads(done.output)
    assert answer["fits"] is True
    assert answer["predicted_peak_bytes"] == sum(answer["parts"].values())
    assert all(item["reason"] for item in answer["settings"].values())


def test_the_command_reads_a_local_config_and_refuses_what_it_does_not_know(tmp_path):
    config = {"model_type": "gpt_neox", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
              "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["--model", str(tmp_path), "--gpu-memory", "8GiB", "--json"]
    answer = json.loads(CliRunner().invoke(plan, arguments, standalone_mode=False).output)
    assert answer["settings"]["train.engine"]["value"] == "peft"
    done = CliRunner().invoke(plan, ["--model", "no/such-model"], standalone_mode=False)
    assert isinstance(done.exception, SpecError)
    refusal = CliRunner().invoke(plan, ["--model", "70b", "--gpu", "t4", "--json"], standalone_mode=False)
    assert json.loads(refusal.output)["fits"] is False
    assert refusal.return_value == 2


@pytest.mark.parametrize(("gpu", "engine"), [("v100-32", "unsloth"), ("a100-40", "fused")])
def test_the_command_plans_the_engine_that_a_run_on_that_gpu_would_take(gpu: str, engine: str):
    words = ["--model", "llama3-8b", "--set", "model.quantization=nf4", "--gpu", gpu, "--json"]
    answer = json.loads(CliRunner().invoke(plan, words, standalone_mode=False).output)
    assert answer["settings"]["train.engine"]["value"] == engine


def test_a_plan_says_what_quantized_weights_would_take_with_otherwise_the_same_settings() -> None:
    words = ("--model", "qwen3-8b", "--gpu", "4090")
    whole = plan_report(*words)
    sizes = whole["quantized_bytes"]
    assert sizes["nf4"] < sizes["int8"] < whole["predicted_peak_bytes"]
    fixed = ("model.quantization=nf4", f"train.micro_batch_size={whole['settings']['train.micro_batch_size']['value']}")
    checkpointing = whole["settings"]["train.gradient_checkpointing"]["value"]
    sets = [*fixed, f"train.gradient_checkpointing={str(checkpointing).lower()}"]
    nf4 = plan_report(*words, *(word for text in sets for word in ("--set", text)))
    assert nf4["predicted_peak_bytes"] == sizes["nf4"]
    assert nf4["quantized_bytes"] == {}
    text = CliRunner().invoke(cli, ["plan", *words], catch_exceptions=False).stdout
    assert f"with other values of model.quantization: nf4 {sizes['nf4'] / GIB:.1f} GiB, int8" in text


def test_text_and_json_say_the_same() -> None:
    for model, settings, situation in sample(60):
        job, known = asked(model, settings), model_of(model, MODELS[model])
        assert known.shape is not None
        try:
            best, reasons = choose(job, known, situation)
        except UsageError:
            continue
        gain, sizes = in_fp8(job, known, situation, best), quantized(job, known, situation, best)
        planned = Planned(job, known.shape, situation, False, best, reasons, None, gain, sizes)
        plan_report, text = report(planned), table(planned)
        gain = plan_report["fp8_gain"]
        assert (f"fp8 would be about {gain:.2f} times as fast" if gain else "settings") in text
        for key, item in plan_report["settings"].items():
            assert item["reason"], key
            assert re.search(rf"{re.escape(key)} +{re.escape(str(item['value']))} ", text), key
        assert 0 < plan_report["tokens_per_second"] < float("inf")


def test_few_records_are_reported_by_the_plan_and_the_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ten.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 10)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    job = tmp_path / "job.yaml"
    job.write_text("data: {train: ten.jsonl}\ntrain: {epochs: 3, global_batch_size: 64}\nmodel: {path: ./model}\n")
    plan_report = "data.train: 1 step; each record 6.4 times; set train.global_batch_size below 10"

    planned = CliRunner().invoke(cli, ["plan", "job.yaml", "--model", "llama3-8b"], catch_exceptions=False)
    assert plan_report in planned.output
    dry = ["local", "job.yaml", "--device", "cpu", "--dry-run"]
    assert f"note: {plan_report}" in CliRunner().invoke(cli, dry, catch_exceptions=False).output
    as_list = [*dry, "--set", "data.train=ten.json"]
    (tmp_path / "ten.json").write_text(json.dumps([{"instruction": "a", "output": "b"}] * 10))
    assert f"note: {plan_report}" in CliRunner().invoke(cli, as_list, catch_exceptions=False).output
    enough = [*dry, "--set", "train.global_batch_size=2", "--set", "train.epochs=4"]
    assert "note:" not in CliRunner().invoke(cli, enough, catch_exceptions=False).output


QWEN3_235B: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 94,
    "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip


def test_a_mixture_of_experts_is_counted_with_what_is_active_and_shared_by_zero_3(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_235B))
    sixteen = ["plan", "--model", str(tmp_path), "--gpu", "h100", "--gpus", "8", "--nodes", "2"]
    planned = CliRunner().invoke(cli, sixteen, standalone_mode=False)
    assert planned.exception is None
    assert "235.09 billion parameters, 22.19 billion of them active" in planned.output
    answer = json.loads(CliRunner().invoke(cli, [*sixteen, "--json"], standalone_mode=False).output)
    assert answer["settings"]["train.zero_stage"]["value"] == 3
    assert answer["parts"]["weights"] > 2 * answer["parameters"] / 16
    assert "router loss: weight 0" in answer["settings"]["lora.target_modules"]["reason"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--gpus", "8", "--nodes", "2", "--set", "train.zero_stage=0"], "does not fit"),
        (["--gpus", "8", "--nodes", "2", "--set", "train.gradient_checkpointing=false"], "does not fit"),
        (["--gpus", "4"], "does not fit"),
        (["--set", "model.quantization=nf4"], "bitsandbytes quantizes linear layers"),
    ],
    ids=["ddp", "no-checkpointing", "four-cards", "nf4"],
)
def test_a_mixture_of_experts_that_cannot_fit_is_refused(tmp_path: Path, more: list[str], words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_235B))
    command = ["plan", "--model", str(tmp_path), "--gpu", "h100", *more]
    refused = CliRunner().invoke(cli, command, standalone_mode=False)
    assert isinstance(refused.exception, UsageError)
    assert words in str(refused.exception)

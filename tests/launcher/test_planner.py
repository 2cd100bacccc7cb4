"""What `auto` means on a GPU: the fastest setting that fits, and the smallest change where none does."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from launcher import gpus, planner
from launcher.commands.plan import plan as command
from launcher.errors import BatchError, SpecError
from launcher.planner import DoesNotFit, Situation
from launcher.spec import JobSpec, convert
from tests.launcher.plans import make
from train.memory import GIB, SHAPES


def job(**sections: dict[str, Any]) -> JobSpec:
    return convert({"model": {"path": "llama3-8b"}, **sections}, where="test")


def on(gpu: str, world: int = 1) -> Situation:
    model = gpus.find(gpu)
    return Situation(world, model.memory_bytes, model.title, model.matrix_rate)


def chosen(shape: str, gpu: str, world: int = 1, **sections: dict[str, Any]) -> planner.Choice:
    return planner.choose(job(**sections), SHAPES[shape], on(gpu, world))


def outcome(shape: str, gpu: str, world: int) -> tuple[planner.Choice | None, DoesNotFit | None]:
    try:
        return chosen(shape, gpu, world), None
    except DoesNotFit as refusal:
        return None, refusal


def test_a_large_gpu_keeps_its_activations_and_a_small_one_recomputes_them():
    assert chosen("llama3-8b", "h200").setting.checkpointing is False
    small = chosen("llama3-8b", "3090")
    assert small.setting.checkpointing is True
    assert "without it the pass needs" in next(r.reason for r in small.reasons if "checkpointing" in r.setting)


@pytest.mark.parametrize("gpu", sorted(gpus.GPUS))
@pytest.mark.parametrize("shape", ["llama3.2-1b", "qwen3-8b", "llama3-70b"])
def test_what_is_chosen_always_fits_and_divides_the_batch(gpu: str, shape: str):
    for world in (1, 8):
        choice, refusal = outcome(shape, gpu, world)
        if choice is None:
            assert refusal is not None
            assert not planner.fits(refusal.smallest, on(gpu, world))
            continue
        assert planner.fits(choice.memory, on(gpu, world))
        solved = choice.batch
        assert solved.micro_batch_size * solved.gradient_accumulation_steps * world == 64


def test_weights_too_large_for_a_gpu_are_shared_by_the_ranks():
    assert chosen("llama3-8b", "h100", 8).setting.zero_stage == 0
    assert chosen("llama3-70b", "h100", 8).setting.zero_stage == 3


def test_a_job_that_does_not_fit_says_what_would_make_it_fit():
    with pytest.raises(DoesNotFit) as caught:
        chosen("llama3-70b", "h100")
    changes = [change.text for change in caught.value.changes]
    assert changes[0] == "model.quantization: nf4"
    assert any("GPUs like this one" in text for text in changes)
    assert "model.quantization: nf4" in str(caught.value.hint)
    assert all(change.choice.memory.total < caught.value.smallest.total for change in caught.value.changes[:1])


def test_the_first_change_is_the_one_that_costs_least():
    with pytest.raises(DoesNotFit) as caught:
        chosen("llama3-8b", "a100-40", train={"gradient_checkpointing": False, "micro_batch_size": 8})
    assert caught.value.changes[0].text == "train.gradient_checkpointing: true"
    with pytest.raises(DoesNotFit) as caught:
        chosen("llama3-8b", "a100-80", train={"gradient_checkpointing": False, "micro_batch_size": 32})
    assert [c.text for c in caught.value.changes][:2] == [
        "train.gradient_checkpointing: true",
        "train.micro_batch_size: 8",
    ]


def test_a_batch_that_the_ranks_cannot_share_is_refused_before_memory_is_looked_at():
    with pytest.raises(BatchError, match="cannot be shared"):
        chosen("llama3-70b", "t4", 7)


def test_what_the_user_fixed_stays():
    choice = chosen("qwen3-8b", "h200", train={"micro_batch_size": 2, "gradient_checkpointing": True, "engine": "peft"})
    assert (choice.batch.micro_batch_size, choice.setting.checkpointing, choice.setting.engine) == (2, True, "peft")
    assert not {r.setting for r in choice.reasons} & {"train.micro_batch_size", "train.gradient_checkpointing"}


@pytest.mark.parametrize(
    ("sections", "engine"),
    [
        ({}, "fused"),
        ({"lora": {"dropout": 0.1}}, "unsloth"),
        ({"lora": {"dora": True}}, "peft"),
        ({"model": {"quantization": "int8"}}, "peft"),
        ({"train": {"zero_stage": 3}}, "fused"),
        ({"train": {"zero_stage": 3}, "model": {"quantization": "nf4"}}, "peft"),
        ({"lora": {"target_modules": ".*_proj"}}, "unsloth"),
    ],
)
def test_the_engine_follows_from_the_job(sections: dict[str, Any], engine: str):
    assert chosen("llama3-8b", "h200", **sections).setting.engine == engine
    old = msgspec.convert({}, JobSpec)
    situation = Situation(1, 32 * GIB, "old", 9e13, bfloat16=False)
    assert planner.engine_of(old, SHAPES["llama3-8b"], situation, 0) == "unsloth"


CHATGLM2 = {
    "model_type": "chatglm", "architectures": ["ChatGLMModel"], "num_layers": 28, "hidden_size": 4096,
    "ffn_hidden_size": 13696, "num_attention_heads": 32, "multi_query_attention": True, "multi_query_group_num": 2,
    "kv_channels": 128, "padded_vocab_size": 65024,
}  # fmt: skip
BAICHUAN_13B = {
    "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "num_hidden_layers": 40, "hidden_size": 5120,
    "intermediate_size": 13696, "num_attention_heads": 40, "vocab_size": 125696,
}  # fmt: skip
BAICHUAN_7B = {**BAICHUAN_13B, "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
               "num_attention_heads": 32, "max_position_embeddings": 4096}  # fmt: skip
GLM4 = {**CHATGLM2, "model_type": "glm", "architectures": ["GlmForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "settings", "engine"),
    [
        (CHATGLM2, (), "fused"),
        (CHATGLM2, ("lora.dropout=0.1",), "peft"),
        (GLM4, (), "fused"),
        (BAICHUAN_13B, (), "peft"),
        (BAICHUAN_7B, (), "fused"),
        (BAICHUAN_7B, ("train.zero_stage=3", "model.quantization=nf4"), "peft"),
    ],
    ids=str,
)
def test_every_family_gets_an_engine_that_can_train_it(config: dict[str, Any], settings: tuple[str, ...], engine: str):
    """On a GPU with everything `auto`; the gate in front of submission agrees with the planner."""
    plan = make(
        "train.global_batch_size=64", *settings, device="cuda", gpu_memory_bytes=80 * GIB, gpu_name="NVIDIA H100",
        compute_capability=9.0, hosts=(("localhost", 2),), model_config=config,
    )  # fmt: skip
    assert plan.train is not None
    assert plan.train.train.engine == engine


def test_a_real_plan_carries_the_planners_word_and_its_prediction():
    config = {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    }  # fmt: skip
    plan = make("train.global_batch_size=64", device="cuda", gpu_memory_bytes=24 * GIB, gpu_name="NVIDIA RTX 3090",
                compute_capability=8.6, hosts=(("localhost", 1),), tree={"model.path": "llama3-8b"})  # fmt: skip
    assert plan.train is not None
    assert plan.train.train.gradient_checkpointing is True
    assert (plan.train.train.engine, plan.train.train.packing) == ("fused", "pack")
    assert plan.train.predicted_peak_bytes is not None
    assert plan.train.predicted_peak_bytes < 24 * GIB
    assert config["hidden_size"] == SHAPES["llama3-8b"].hidden


def test_gpus_are_found_by_name_and_by_what_nvidia_smi_calls_them():
    assert gpus.find("A100").key == "a100-80"
    assert gpus.find("rtx4090").key == "4090"
    with pytest.raises(SpecError, match="not a GPU") as caught:
        gpus.find("h20o")
    assert "did you mean" in str(caught.value.hint)
    found = gpus.identify("NVIDIA A100-SXM4-40GB", 40 * GIB)
    assert found is not None
    assert found.key == "a100-40"
    assert gpus.identify("Graphics card", GIB) is None
    assert gpus.parse_memory("24GiB") == 24 * GIB
    assert gpus.parse_memory("80GB") == 80 * 10**9
    with pytest.raises(SpecError):
        gpus.parse_memory("much")


def test_the_command_prints_every_part_and_every_reason(tmp_path):
    job_file = tmp_path / "job.yaml"
    (tmp_path / "train.jsonl").write_text('{"instruction": "%s", "output": "b"}\n' % ("x" * 600) * 100)
    job_file.write_text("model: {path: Qwen/Qwen3-8B}\ndata: {train: train.jsonl}\n")
    done = CliRunner().invoke(command, [str(job_file), "--gpu", "a100-80", "--gpus", "2"], standalone_mode=False)
    assert done.exception is None
    for word in ("weights", "activations", "logits", "optimizer", "train.zero_stage", "tokens/s", "2 steps"):
        assert word in done.output
    done = CliRunner().invoke(command, [str(job_file), "--gpu", "a100-80", "--json"], standalone_mode=False)
    answer = json.loads(done.output)
    assert answer["fits"] is True
    assert answer["predicted_peak_bytes"] == sum(answer["parts"].values())
    assert all(item["reason"] for item in answer["settings"].values())


def test_the_command_reads_a_local_config_and_refuses_what_it_does_not_know(tmp_path):
    config = {"model_type": "gpt_neox", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
              "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["--model", str(tmp_path), "--gpu-memory", "8GiB", "--json"]
    answer = json.loads(CliRunner().invoke(command, arguments, standalone_mode=False).output)
    assert answer["settings"]["train.engine"]["value"] == "peft"
    done = CliRunner().invoke(command, ["--model", "no/such-model"], standalone_mode=False)
    assert isinstance(done.exception, SpecError)
    refusal = CliRunner().invoke(command, ["--model", "70b", "--gpu", "t4", "--json"], standalone_mode=False)
    assert json.loads(refusal.output)["fits"] is False
    assert refusal.return_value == 2


@pytest.mark.parametrize(("gpu", "engine"), [("v100-32", "unsloth"), ("a100-40", "fused")])
def test_the_command_plans_the_engine_that_a_run_on_that_gpu_would_take(gpu: str, engine: str):
    words = ["--model", "llama3-8b", "--set", "model.quantization=nf4", "--gpu", gpu, "--json"]
    answer = json.loads(CliRunner().invoke(command, words, standalone_mode=False).output)
    assert answer["settings"]["train.engine"]["value"] == engine

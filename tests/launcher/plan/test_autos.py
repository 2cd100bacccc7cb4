"""What `auto` means on a GPU: the fastest setting that fits, and the smallest change where none does."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from launcher.commands.plan import plan as command
from launcher.commands.plan import report, table
from launcher.errors import BatchError, CompatibilityError, SpecError, UsageError
from launcher.job.load import convert
from launcher.job.spec import JobSpec
from launcher.plan import autos, gpus
from launcher.plan.autos import DoesNotFit, Model, Situation
from launcher.render import texts
from tests.beds.plans import make
from train import compat, families
from train.config import TrainConfig, load
from train.memory import GIB, SHAPES


def job(**sections: dict[str, Any]) -> JobSpec:
    return convert({"model": {"path": "llama3-8b"}, **sections}, where="test")


def on(gpu: str, world: int = 1) -> Situation:
    model = gpus.find(gpu)
    return Situation.of(world, model.memory_bytes, model.title)


def named(name: str) -> Model:
    model = autos.model_of(name, None)
    assert model is not None
    return model


def chosen(shape: str, gpu: str, world: int = 1, **sections: dict[str, Any]) -> autos.Choice:
    return autos.choose(job(**sections), named(shape), on(gpu, world))


def outcome(shape: str, gpu: str, world: int) -> tuple[autos.Choice | None, DoesNotFit | None]:
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
            assert not autos.fits(refusal.smallest, on(gpu, world))
            continue
        assert autos.fits(choice.memory, on(gpu, world))
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
    situation = Situation(1, 32 * GIB, "old", 9e13, compute_capability=7.5)
    assert autos.compat_settings(old, named("llama3-8b"), situation, 0).engine == "unsloth"


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


LLAMA_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096,
    "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
LLAMA_70B = {**LLAMA_8B, "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
             "num_attention_heads": 64}  # fmt: skip
MISTRAL = {**LLAMA_8B, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "vocab_size": 32000}
GEMMA = {**LLAMA_8B, "model_type": "gemma", "architectures": ["GemmaForCausalLM"], "num_hidden_layers": 18,
         "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8, "num_key_value_heads": 1,
         "head_dim": 256, "vocab_size": 256000, "hidden_act": "gelu"}  # fmt: skip
UNTYPED = {key: value for key, value in LLAMA_8B.items() if key not in ("model_type", "architectures")}
MODELS: dict[str, dict[str, Any] | None] = {
    "llama": LLAMA_8B, "70b": LLAMA_70B, "chatglm2": CHATGLM2, "glm4": GLM4, "baichuan-7b": BAICHUAN_7B,
    "baichuan-13b": BAICHUAN_13B, "gemma": GEMMA, "untyped": UNTYPED,
    "sliding": {**MISTRAL, "sliding_window": 4096}, "mistral": {**MISTRAL, "sliding_window": None},
    "wrapped": {"model_type": "mistral3", "text_config": MISTRAL},
    "dynamic": {**LLAMA_8B, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "small": {**LLAMA_8B, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
              "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 256000},
    "llama3-8b": None, "baichuan2-13b": None,
}  # fmt: skip
AXES: dict[str, tuple[Any, ...]] = {  # the first is what a job has that says nothing
    "train.zero_stage": ("auto", 0, 1, 2, 3),
    "train.packing": ("auto", "none", "bucket", "pack"),
    "train.gradient_checkpointing": ("auto", True, False),
    "train.engine": ("auto", "unsloth", "peft", "fused"),
    "train.global_batch_size": (64, 96, 10, 1),
    "train.micro_batch_size": ("auto", 1, 4, 16),
    "train.offload": ("none", "cpu"),
    "model.quantization": ("none", "nf4", "int8"),
    "model.dtype": ("auto", "bfloat16", "float16", "float32"),
    "data.max_length": (2048, 128, 512, 8192, 32768),
    "lora.r": (16, 1, 512),
    "lora.dora": (False, True),
    "lora.dropout": (0.0, 0.1),
    "lora.init": ("default", "pissa"),
    "lora.modules_to_save": ((), ("embed_tokens", "lm_head")),
}


def asked(model: str, settings: dict[str, Any]) -> JobSpec:
    tree: dict[str, Any] = {"model": {"path": model}}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    return convert(tree, where="test")


def answer(model: str, settings: dict[str, Any], situation: Situation) -> autos.Choice | UsageError:
    known = autos.model_of(model, MODELS[model])
    assert known is not None
    try:
        return autos.choose(asked(model, settings), known, situation)
    except UsageError as error:
        return error


def applied(change: str, settings: dict[str, Any], situation: Situation) -> tuple[dict[str, Any], Situation]:
    """What a user would do who reads it."""
    settings = dict(settings)
    for key, value in re.findall(r"(\w+\.\w+): (\w+)", change):
        settings[key] = {"true": True}.get(value, int(value) if value.isdigit() else value)
    if more := re.search(r"(\d+) GPUs like this one", change):
        situation = replace(situation, world_size=int(more[1]))
    if bigger := re.search(r"a GPU of \d+ GiB \((.*)\)", change):
        card = next(card for card in gpus.GPUS.values() if card.title == bigger[1])
        situation = Situation.of(situation.world_size, card.memory_bytes, card.title)
    return settings, situation


def rendered(model: str, settings: dict[str, Any], situation: Situation, place: Path) -> TrainConfig:
    """train.json as the training program reads it, and ds_config.json, which names the same batch."""
    run = make(
        *(f"{key}={json.dumps(value)}" for key, value in settings.items()), device="cuda",
        tree={"model.path": model, "train.global_batch_size": 64},
        hosts=(("h", situation.world_size),), gpu_memory_bytes=situation.gpu_memory_bytes,
        gpu_name=situation.gpu_name, compute_capability=situation.compute_capability, model_config=MODELS[model],
    )  # fmt: skip
    files = texts.render(run)
    (place / "train.json").write_text(files["train.json"])
    config = load(place / "train.json")
    numbers = config.train
    if numbers.zero_stage:
        batch = json.loads(files["ds_config.json"])
        assert batch["train_batch_size"] == numbers.global_batch_size
        assert batch["train_micro_batch_size_per_gpu"] == numbers.micro_batch_size
        assert batch["gradient_accumulation_steps"] == numbers.gradient_accumulation_steps
    return config


def sample(count: int) -> list[tuple[str, dict[str, Any], Situation]]:
    rng, found = random.Random(3407), []
    for _ in range(count):
        often = rng.random()  # few settings given in some jobs, many in others
        settings = {key: rng.choice(values) for key, values in AXES.items() if rng.random() < often}
        card = gpus.GPUS[rng.choice(list(gpus.GPUS))]
        size = rng.choice((card.memory_bytes, card.memory_bytes, 6 * GIB, 192 * GIB))
        found.append((rng.choice(list(MODELS)), settings, Situation.of(rng.choice((1, 2, 8, 3)), size, card.title)))
    return found


def test_planner_gate_renderer_and_training_program_agree_on_any_job(tmp_path: Path) -> None:
    seen = {"fits": 0, "changes": 0, "refused": 0}
    for model, settings, situation in sample(200):
        case = (model, settings, situation)
        told = answer(model, settings, situation)
        if isinstance(told, autos.Choice):
            seen["fits"] += 1
            assert autos.fits(told.memory, situation), case
            config = rendered(model, settings, situation, tmp_path)
            numbers = config.train
            ranks = situation.world_size
            product = numbers.micro_batch_size * numbers.gradient_accumulation_steps * ranks
            assert product == numbers.global_batch_size == settings.get("train.global_batch_size", 64), case
            assert (numbers.micro_batch_size, numbers.zero_stage, numbers.packing, config.model.dtype) == (
                told.batch.micro_batch_size, told.setting.zero_stage, told.packing, told.dtype,
            ), case  # fmt: skip
            assert config.predicted_peak_bytes == told.predicted_peak_bytes, case
            held = MODELS[model]
            family = families.of_type(SHAPES[model].family) if held is None else families.family_of(held)
            asked_there = compat.Combination.of(config, family)
            assert compat.check(asked_there) == [], case
            assert compat.engine_for(asked_there)[0] == told.setting.engine, case
            assert all(reason.reason for reason in told.reasons), case
        else:
            assert told.hint, case
            with pytest.raises(type(told), match=re.escape(str(told))):
                rendered(model, settings, situation, tmp_path)
            for change in getattr(told, "changes", ()):
                seen["changes"] += 1
                again = answer(model, *applied(change.text, settings, situation))
                assert isinstance(again, autos.Choice), (case, change.text, again)
            if type(told) is CompatibilityError:
                seen["refused"] += 1
                again = answer(model, *applied(told.hint, settings, situation))
                assert type(again) is not CompatibilityError, (case, told.hint, again)
    assert min(seen.values()) > 20, seen


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("model", MODELS)
def test_more_memory_never_makes_a_job_unfit_or_slower(model: str, quantization: str) -> None:
    best = 0.0
    for gib in (6, 8, 12, 16, 24, 40, 48, 80, 96, 128, 192):
        told = answer(model, {"model.quantization": quantization}, Situation(2, gib * GIB))
        assert isinstance(told, (autos.Choice, DoesNotFit))
        assert isinstance(told, autos.Choice) or not best
        if isinstance(told, autos.Choice):
            assert told.tokens_per_second >= 0.99 * best  # a hundredth is given up for less memory or no ZeRO
            best = max(best, told.tokens_per_second)


@pytest.mark.parametrize("setting", ["lora.dora", "lora.init"])
def test_zero_is_only_ever_chosen_where_the_job_can_have_it(setting: str) -> None:
    """DoRA and PiSSA need whole weights: a model that only ZeRO-3 could hold does not fit."""
    wanted = {setting: {"lora.dora": True, "lora.init": "pissa"}[setting]}
    assert isinstance(answer("70b", wanted, on("h100", 8)), DoesNotFit)
    fused = answer("70b", {"train.engine": "fused", "model.quantization": "nf4"}, on("4090", 8))
    assert isinstance(fused, DoesNotFit)
    assert "train.engine: auto" in str(fused.hint)


def test_a_change_names_all_that_must_be_changed() -> None:
    told = answer("llama", {"train.gradient_checkpointing": False, "train.micro_batch_size": 64}, on("4090"))
    assert isinstance(told, DoesNotFit)
    nf4 = next(change.text for change in told.changes if "nf4" in change.text)
    assert "train.gradient_checkpointing: auto" in nf4
    assert "train.micro_batch_size: auto" in nf4


def test_a_larger_gpu_that_is_advised_is_planned_for_as_itself() -> None:
    told = answer("llama", {}, Situation.of(1, 16 * GIB, "NVIDIA V100 16GB"))
    assert isinstance(told, DoesNotFit)
    larger = next(change for change in told.changes if "a GPU of" in change.text)
    assert "RTX 3090" in larger.text or "A10" in larger.text or "L4" in larger.text
    assert (larger.choice.dtype, larger.choice.setting.engine) == ("bfloat16", "fused")


@pytest.mark.parametrize("model", ["sliding", "dynamic", "wrapped", "untyped", "gemma"])
def test_a_model_without_fused_layers_is_not_planned_for_them(model: str) -> None:
    told = answer(model, {}, on("h100"))
    assert isinstance(told, autos.Choice)
    assert told.setting.engine in ("unsloth", "peft")
    refused = answer(model, {"train.engine": "fused"}, on("h100"))
    assert isinstance(refused, CompatibilityError)
    assert "train.engine: auto" in str(refused.hint)


def test_a_run_that_may_find_no_unsloth_is_left_to_choose(tmp_path: Path) -> None:
    """The planner counts on Unsloth, but a job that asked for nothing is not refused where it is not installed."""
    told = answer("llama", {"lora.dropout": 0.1}, on("h100"))
    assert isinstance(told, autos.Choice)
    assert told.setting.engine == "unsloth"
    assert rendered("llama", {"lora.dropout": 0.1}, on("h100"), tmp_path).train.engine == "auto"


def test_modules_that_are_trained_whole_are_counted() -> None:
    plain, whole = (
        answer("llama", {"train.engine": "peft", "lora.modules_to_save": names}, on("h200"))
        for names in ((), ("embed_tokens", "lm_head"))
    )
    assert isinstance(plain, autos.Choice)
    assert isinstance(whole, autos.Choice)
    trained = 2 * 128256 * 4096
    assert whole.memory.optimizer - plain.memory.optimizer == 8 * trained


def test_offloading_has_zero_where_the_model_is_not_known() -> None:
    run = make("train.offload=cpu", device="cuda", gpu_memory_bytes=None, model_config={"model_type": "mixtral"})
    assert run.train is not None
    assert run.train.train.zero_stage == 2


def test_a_gpu_whose_capability_is_not_known_is_known_by_its_name() -> None:
    run = make(device="cuda", hosts=(("h", 1),), gpu_memory_bytes=32 * GIB, gpu_name="Tesla V100-SXM2-32GB",
               tree={"model.path": "llama3.2-1b"})  # fmt: skip
    assert run.train is not None
    assert run.train.model.dtype == "float16"
    with pytest.raises(CompatibilityError, match="bfloat16"):
        make("model.dtype=bfloat16", device="cuda", gpu_memory_bytes=32 * GIB, gpu_name="Tesla V100-SXM2-32GB")


@pytest.mark.parametrize("size", ["0GiB", "0", "9" * 400])
def test_a_size_that_no_gpu_has_is_refused(size: str) -> None:
    with pytest.raises(SpecError) as caught:
        gpus.parse_memory(size)
    assert "24GiB" in str(caught.value.hint)


def test_text_and_json_say_the_same() -> None:
    for model, settings, situation in sample(60):
        told = answer(model, settings, situation)
        if not isinstance(told, autos.Choice):
            continue
        job_, known = asked(model, settings), autos.model_of(model, MODELS[model])
        assert known is not None
        said = report(job_, known.shape, situation, told, None)
        text = table(job_, known.shape, situation, told, None)
        for key, item in said["settings"].items():
            assert item["reason"], key
            assert re.search(rf"{re.escape(key)} +{re.escape(str(item['value']))} ", text), key
        assert 0 < said["tokens_per_second"] < float("inf")
